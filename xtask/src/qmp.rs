//! QEMU's machine protocol: what happened to the machine, told by the emulator and not by the guest.
//!
//! A guest that says "I reset" proves nothing; a `SHUTDOWN` event with the reason `guest-reset`
//! does. The protocol is one JSON object a line, so `serde_json` is all it takes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to open a socket, or to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How often a socket that is not there yet is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// An event and when it was seen here.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub(crate) name: String,
    /// Its data's member `reason`, empty where it has none.
    pub(crate) reason: String,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
    events: Receiver<Event>,
}

impl Qmp {
    /// Connects, as soon as QEMU has opened its socket; `check` says why that will not be.
    pub(crate) fn connect(socket: &Path, check: impl FnMut() -> Result<()>) -> Result<Self> {
        let stream = connect_when_there(socket, check)?;
        let reader = stream.try_clone().context("cannot share the QMP socket")?;
        let (answer_sender, answers) = mpsc::channel();
        let (event_sender, events) = mpsc::channel();
        read_messages(reader, answer_sender, event_sender);
        let mut qmp = Self {
            stream,
            answers,
            events,
        };
        let greeting = qmp.answer()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's greeting is not QMP's: {greeting}");
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot send {command} to QEMU"))?;
        let answer = self
            .answer()
            .with_context(|| format!("no answer to {command}"))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("QEMU refuses {command}: {answer}"),
        }
    }

    /// Executes a command of the human monitor and gives its text.
    pub(crate) fn monitor(&mut self, command: &str) -> Result<String> {
        let value = self.execute("human-monitor-command", &json!({ "command-line": command }))?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// All events that have not been taken yet, once QEMU has ended: up to the end of the connection,
    /// because its last words may still be on their way when the process is already gone.
    pub(crate) fn last_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(ANSWER_DEADLINE) {
            events.push(event);
        }
        events
    }

    /// The next event, if one has come.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn answer(&mut self) -> Result<Value> {
        match self.answers.recv_timeout(ANSWER_DEADLINE) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => bail!("QEMU does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU has ended"),
        }
    }
}

/// Sorts what QEMU says into answers and events, until the connection ends. What nobody waits for any
/// more is dropped.
fn read_messages(reader: UnixStream, answers: Sender<Value>, events: Sender<Event>) {
    thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            let Ok(line) = line else { break };
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            match parse_event(&message) {
                Some(event) => drop(events.send(event)),
                None => drop(answers.send(message)),
            }
        }
    });
}

/// Connects to a socket that is about to be opened, unless `check` fails meanwhile.
pub(crate) fn connect_when_there(
    socket: &Path,
    mut check: impl FnMut() -> Result<()>,
) -> Result<UnixStream> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if began.elapsed() > ANSWER_DEADLINE => {
                return Err(error).context("QEMU does not open its socket");
            }
            Err(_) => {
                check()?;
                thread::sleep(RETRY_INTERVAL);
            }
        }
    }
}

fn parse_event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let reason = message
        .pointer("/data/reason")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    Some(Event { name, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_is_waited_for() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let (_, answers) = mpsc::channel();
        let (sender, events) = mpsc::channel();
        read_messages(near.try_clone().unwrap(), mpsc::channel().0, sender);
        let mut qmp = Qmp {
            stream: near,
            answers,
            events,
        };
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            far.write_all(b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n")
                .unwrap();
        });
        let events = qmp.last_events();
        late.join().unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].reason, "guest-reset");
    }

    #[test]
    fn events_have_a_name_and_perhaps_a_reason() {
        let message =
            json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": "guest-reset" } });
        let event = parse_event(&message).unwrap();
        assert_eq!(
            (event.name.as_str(), event.reason.as_str()),
            ("SHUTDOWN", "guest-reset")
        );
        assert!(parse_event(&json!({ "return": {} })).is_none());
    }
}
