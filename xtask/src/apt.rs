//! Packages from Debian's archive, verified by apt, without touching the system.
//!
//! Problem: the lab needs kernels, QEMU and a cross compiler of releases other than the host's, on
//! a machine where it may not be root. Choice: apt with state, cache and configuration of its own,
//! one such *root* per Debian release, so that the versions of one closure always fit each other
//! and signatures are checked by the program that people already trust with it. Packages are
//! unpacked with `dpkg-deb`, never installed.
//!
//! Rejected: one root with all releases and pinning (a closure then mixes releases as soon as one
//! package is newer elsewhere); downloading by HTTP and checking hashes here (a second, weaker
//! apt); containers (they need rights and a daemon).
//!
//! The archive's address is the machine's own, read from apt's configuration, because a machine
//! may be able to reach one mirror only. It is not shown: error texts are stripped of it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{self, Lab};
use crate::progress::{Progress, megabytes};

/// Overrides the main archive, for hosts that are not Debian.
const MIRROR_VARIABLE: &str = "KLEAP_DEBIAN_MIRROR";
/// Overrides the security archive.
const SECURITY_MIRROR_VARIABLE: &str = "KLEAP_DEBIAN_SECURITY_MIRROR";
/// Debian's keys, part of every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Names by which an entry of apt's configuration is known to mean a Debian release.
const RELEASE_NAMES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];
/// An index older than this is fetched again before anything is downloaded with it.
const INDEX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a download's size is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The parts of the machine's apt configuration that say how to reach the archive.
const KEPT_SETTINGS: &[&str] = &[
    "Acquire::http",
    "Acquire::https",
    "Acquire::ForceIPv",
    "Acquire::Check-",
    "Acquire::Retries",
];

/// The archive's addresses. `Debug` is not derived: they are not to be printed.
pub(crate) struct Mirror {
    main: String,
    security: String,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Mirror")
    }
}

/// One source of apt's configuration, of either format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: String,
}

impl Mirror {
    /// Finds the archive that this machine uses.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let mut sources = Vec::new();
        let one_line = Path::new("/etc/apt/sources.list");
        if let Ok(text) = fs::read_to_string(one_line) {
            sources.extend(parse_one_line(&text));
        }
        let mut files: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.sort();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.extend(parse_one_line(&text)),
                Some("sources") => sources.extend(parse_deb822(&text)),
                _ => {}
            }
        }
        Self::choose(
            &sources,
            env::var(MIRROR_VARIABLE).ok(),
            env::var(SECURITY_MIRROR_VARIABLE).ok(),
        )
    }

    fn choose(sources: &[Source], main: Option<String>, security: Option<String>) -> Result<Self> {
        let is_main = |suite: &str| RELEASE_NAMES.contains(&suite);
        let is_security = |suite: &str| {
            suite
                .strip_suffix("-security")
                .or_else(|| suite.strip_suffix("/updates"))
                .is_some_and(|name| RELEASE_NAMES.contains(&name))
        };
        let main = main
            .or_else(|| best_uri(sources, is_main, "debian"))
            .with_context(|| {
                format!(
                    "no Debian archive in apt's configuration (/etc/apt/sources.list and \
                 sources.list.d): add an entry of type deb for a Debian release with component \
                 main, or set {MIRROR_VARIABLE} to a mirror's address"
                )
            })?;
        let security = security
            .or_else(|| best_uri(sources, is_security, "debian-security"))
            .unwrap_or_else(|| format!("{}-security", main.trim_end_matches('/')));
        Ok(Self { main, security })
    }

    /// Takes the archive's addresses and host names out of a text.
    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for uri in [&self.security, &self.main] {
            text = text.replace(uri.as_str(), "<archive>");
            let host = uri
                .split("://")
                .nth(1)
                .and_then(|rest| rest.split('/').next());
            if let Some(host) = host.filter(|host| !host.is_empty()) {
                text = text.replace(host, "<archive>");
            }
        }
        text.split('\n')
            .map(|line| {
                line.split(' ')
                    .map(|word| {
                        if word.contains("://") {
                            "<address>"
                        } else {
                            word
                        }
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The address most likely to be the archive itself: other publishers also name their suites after
/// Debian's releases and their component "main".
fn best_uri(
    sources: &[Source],
    suite_fits: impl Fn(&str) -> bool,
    last_word: &str,
) -> Option<String> {
    let mut best: Option<(u32, &String)> = None;
    for source in sources {
        let fits = source.suites.iter().any(|suite| suite_fits(suite))
            && source
                .components
                .iter()
                .any(|component| component == "main");
        if !fits {
            continue;
        }
        for uri in source.uris.iter().filter(|uri| !uri.starts_with("cdrom:")) {
            let last = uri
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default();
            let score = 2 * u32::from(source.signed_by.contains("debian-archive"))
                + u32::from(last.trim_end_matches(".list") == last_word);
            if best.is_none_or(|(best_score, _)| score > best_score) {
                best = Some((score, uri));
            }
        }
    }
    best.map(|(_, uri)| uri.clone())
}

/// Reads lines of the form `deb [options] uri suite components`.
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap_or(("", rest)),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        sources.push(Source {
            uris: vec![uri],
            suites: vec![suite],
            components: words.collect(),
            signed_by: options.to_owned(),
        });
    }
    sources
}

/// Reads stanzas of the deb822 format.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut source = Source::default();
    let mut usable = true;
    let mut key = String::new();
    // A blank line ends a stanza; one more is appended so that the last stanza ends as well.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            let done = std::mem::take(&mut source);
            if usable && !done.uris.is_empty() {
                sources.push(done);
            }
            usable = true;
            key.clear();
            continue;
        }
        let value = if line.starts_with([' ', '\t']) {
            line.trim()
        } else if let Some((name, value)) = line.split_once(':') {
            key = name.trim().to_ascii_lowercase();
            value.trim()
        } else {
            continue;
        };
        let words = value.split_whitespace().map(str::to_owned);
        match key.as_str() {
            "uris" => source.uris.extend(words),
            "suites" => source.suites.extend(words),
            "components" => source.components.extend(words),
            "signed-by" => source.signed_by.push_str(value),
            "types" => usable &= words.into_iter().any(|word| word == "deb"),
            "enabled" => usable &= !matches!(value, "no" | "false" | "0" | "without" | "off"),
            _ => {}
        }
    }
    sources
}

/// The architecture of this machine, in Debian's words.
pub(crate) fn host_architecture() -> Result<String> {
    let output = Command::new("dpkg")
        .arg("--print-architecture")
        .output()
        .context(
            "cannot run dpkg: the lab takes its kernels and tools from Debian's archive and needs \
         Debian 12 or later, or a distribution with apt and dpkg",
        )?;
    ensure!(output.status.success(), "dpkg --print-architecture failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A release with apt state of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    /// The name of the root, and of its directory.
    pub(crate) name: &'static str,
    /// Suites of the main archive.
    pub(crate) suites: &'static [&'static str],
    /// Suites of the security archive.
    pub(crate) security_suites: &'static [&'static str],
}

/// Debian 11.
pub(crate) const BULLSEYE: Release = Release {
    name: "bullseye",
    suites: &["bullseye"],
    security_suites: &["bullseye-security"],
};
/// Debian 12.
pub(crate) const BOOKWORM: Release = Release {
    name: "bookworm",
    suites: &["bookworm", "bookworm-updates"],
    security_suites: &["bookworm-security"],
};
/// Debian 13.
pub(crate) const TRIXIE: Release = Release {
    name: "trixie",
    suites: &["trixie"],
    security_suites: &["trixie-security"],
};
/// What will be Debian 14, for what is newer there.
pub(crate) const FORKY: Release = Release {
    name: "forky",
    suites: &["forky"],
    security_suites: &[],
};
/// Newer kernels for Debian 13.
pub(crate) const TRIXIE_BACKPORTS: Release = Release {
    name: "trixie-backports",
    suites: &["trixie-backports"],
    security_suites: &[],
};

/// One version of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// What it depends on, as names, alternatives flattened.
    pub(crate) depends: Vec<String>,
    /// The size of its archive.
    pub(crate) size_bytes: u64,
}

/// apt, confined to a directory of the lab.
#[derive(Debug)]
pub(crate) struct Apt {
    mirror: Mirror,
    directory: PathBuf,
    architecture: String,
    release: Release,
}

impl Apt {
    /// Prepares the root for one release; fetches nothing yet.
    pub(crate) fn open(lab: &Lab, release: Release, architecture: &str) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing, and without Debian's keys nothing downloaded can be verified: \
             install the package debian-archive-keyring"
        );
        let directory = lab.directory(&format!("apt/{}-{architecture}", release.name))?;
        let apt = Self {
            mirror: Mirror::of_this_machine()?,
            directory,
            architecture: architecture.to_owned(),
            release,
        };
        for name in [
            "state/lists/partial",
            "cache/archives/partial",
            "empty",
            "download",
        ] {
            fs::create_dir_all(apt.directory.join(name))
                .with_context(|| format!("cannot create {}", apt.directory.display()))?;
        }
        // An empty status file means that nothing is installed, so a closure is complete.
        lab::write_whole(&apt.directory.join("state/status"), b"")?;
        lab::write_whole(
            &apt.directory.join("sources.list"),
            apt.sources().as_bytes(),
        )?;
        lab::write_whole(
            &apt.directory.join("apt.conf"),
            apt.configuration()?.as_bytes(),
        )?;
        Ok(apt)
    }

    fn sources(&self) -> String {
        let main = self
            .release
            .suites
            .iter()
            .map(|suite| (&self.mirror.main, suite));
        let security = self
            .release
            .security_suites
            .iter()
            .map(|suite| (&self.mirror.security, suite));
        main.chain(security)
            .map(|(uri, suite)| {
                format!(
                    "deb [arch={} signed-by={KEYRING}] {uri} {suite} main\n",
                    self.architecture
                )
            })
            .collect()
    }

    /// apt reads the file named by `APT_CONFIG` first, so this file also keeps the machine's own
    /// configuration out (with its hooks, which would run as us), but for how to reach the archive.
    fn configuration(&self) -> Result<String> {
        let directory = self.directory.display();
        let architecture = &self.architecture;
        let mut text = format!(
            "Dir::Etc::Main \"/dev/null\";\n\
             Dir::Etc::Parts \"{directory}/empty\";\n\
             Dir::Etc::SourceList \"{directory}/sources.list\";\n\
             Dir::Etc::SourceParts \"{directory}/empty\";\n\
             Dir::Etc::Preferences \"/dev/null\";\n\
             Dir::Etc::PreferencesParts \"{directory}/empty\";\n\
             Dir::State \"{directory}/state\";\n\
             Dir::State::Status \"{directory}/state/status\";\n\
             Dir::Cache \"{directory}/cache\";\n\
             Dir::Log \"{directory}\";\n\
             APT::Architecture \"{architecture}\";\n\
             APT::Architectures {{ \"{architecture}\"; }};\n\
             APT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"\";\n\
             APT::Get::AllowUnauthenticated \"false\";\n\
             Debug::NoLocking \"true\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::GzipIndexes \"true\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             Acquire::PDiffs \"false\";\n"
        );
        let dump = Command::new("apt-config")
            .arg("dump")
            .output()
            .context("cannot run apt-config: is apt installed?")?;
        for line in String::from_utf8_lossy(&dump.stdout).lines() {
            let kept = KEPT_SETTINGS
                .iter()
                .any(|setting| line.starts_with(setting));
            if kept && !line.ends_with("\"\";") {
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(text)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// Runs apt quietly while its download directory is watched and shown.
    fn run_watched(
        &self,
        mut command: Command,
        label: String,
        watched: &Path,
        total_bytes: Option<u64>,
    ) -> Result<()> {
        let log = self.directory.join("last.log");
        let file = fs::File::create(&log).context("cannot create apt's log")?;
        command.stdout(file.try_clone()?).stderr(file);
        let before_bytes = size_of_files(watched);
        let mut progress = Progress::start(label);
        let mut child = command
            .spawn()
            .context("cannot start apt: is it installed?")?;
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for apt")? {
                break status;
            }
            let bytes = size_of_files(watched).saturating_sub(before_bytes);
            progress.update(&match total_bytes {
                Some(total) => format!("{} of {}", megabytes(bytes.min(total)), megabytes(total)),
                None => megabytes(bytes),
            });
            thread::sleep(POLL_INTERVAL);
        };
        if status.success() {
            let bytes = size_of_files(watched).saturating_sub(before_bytes);
            progress.finish(&megabytes(bytes));
            return Ok(());
        }
        progress.finish("failed");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("E:") || line.starts_with("W:"))
            .collect();
        lines.truncate(12);
        bail!(
            "apt failed ({status}):\n{}\n(is the machine's Debian archive reachable? `apt-get \
             update` as root shows it)",
            self.mirror.redact(&lines.join("\n"))
        )
    }

    /// Fetches the release's index where there is none, or only an old one.
    pub(crate) fn update(&self, force: bool) -> Result<()> {
        let stamp = self.directory.join("updated");
        // The sources are part of the stamp: another mirror or suite needs another index.
        let sources = self.sources();
        let age = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let same = fs::read_to_string(&stamp).is_ok_and(|text| text == sources);
        if !force && same && age.is_some_and(|age| age < INDEX_LIFETIME) {
            return Ok(());
        }
        let mut command = self.command("apt-get");
        command.args(["update", "-qq", "-o", "APT::Update::Error-Mode=any"]);
        self.run_watched(
            command,
            format!(
                "package index of {} for {}",
                self.release.name, self.architecture
            ),
            &self.directory.join("state/lists"),
            None,
        )?;
        lab::write_whole(&stamp, sources.as_bytes())
    }

    /// All versions of a package, the newest first.
    pub(crate) fn versions(&self, name: &str) -> Result<Vec<Package>> {
        let output = self
            .command("apt-cache")
            .args(["show", "--quiet", name])
            .output()
            .context("cannot run apt-cache")?;
        Ok(parse_packages(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Downloads one version of one package, and gives the file.
    pub(crate) fn download(&self, package: &Package) -> Result<PathBuf> {
        let directory = self.directory.join("download");
        lab::fresh_directory(&directory)?;
        let mut command = self.command("apt-get");
        command
            .current_dir(&directory)
            .args(["download", "-qq"])
            .arg(format!("{}={}", package.name, package.version));
        let label = format!(
            "{} {} ({})",
            package.name, package.version, self.release.name
        );
        self.run_watched(command, label, &directory, Some(package.size_bytes))?;
        let file = fs::read_dir(&directory)
            .context("cannot read the download directory")?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        file.with_context(|| format!("apt reported success but left no file for {}", package.name))
    }

    /// Downloads packages with everything they need, and gives the files.
    pub(crate) fn download_closure(&self, what: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let archives = self.directory.join("cache/archives");
        let list = |command: &mut Command| {
            command.args(["install", "-qq", "-y", "--no-install-recommends"]);
        };
        let mut command = self.command("apt-get");
        list(&mut command);
        let output = command
            .arg("--print-uris")
            .args(packages)
            .output()
            .context("cannot run apt-get")?;
        ensure!(
            output.status.success(),
            "apt cannot resolve {}: {}",
            packages.join(" "),
            self.mirror
                .redact(String::from_utf8_lossy(&output.stderr).trim())
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let missing_bytes: u64 = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok())
            .sum();
        let mut command = self.command("apt-get");
        list(&mut command);
        command.arg("--download-only").args(packages);
        self.run_watched(
            command,
            format!("{what} ({})", self.release.name),
            &archives,
            Some(missing_bytes),
        )?;
        let mut files: Vec<PathBuf> = fs::read_dir(&archives)
            .context("cannot read apt's archive directory")?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        files.sort();
        Ok(files)
    }

    /// Removes downloaded packages once they are unpacked: the unpacked form is what is used.
    pub(crate) fn discard_downloads(&self) -> Result<()> {
        lab::fresh_directory(&self.directory.join("download"))?;
        lab::fresh_directory(&self.directory.join("cache/archives"))?;
        fs::create_dir_all(self.directory.join("cache/archives/partial"))
            .context("cannot create apt's archive directory")
    }
}

/// Reads the stanzas that `apt-cache show` prints, each version once.
fn parse_packages(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let mut seen = BTreeSet::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let (Some(name), Some(version)) = (field("Package"), field("Version")) else {
            continue;
        };
        if !seen.insert(version.to_owned()) {
            continue;
        }
        let depends = field("Depends")
            .unwrap_or_default()
            .split([',', '|'])
            .filter_map(|word| word.split_whitespace().next())
            .map(|word| word.split(':').next().unwrap_or(word).to_owned())
            .collect();
        packages.push(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            depends,
            size_bytes: field("Size")
                .and_then(|size| size.parse().ok())
                .unwrap_or(0),
        });
    }
    packages
}

/// Unpacks a whole package.
pub(crate) fn unpack(package: &Path, directory: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb")
        .arg("--extract")
        .args([package, directory])
        .status()
        .context("cannot run dpkg-deb")?;
    ensure!(
        status.success(),
        "cannot unpack {}: {status}",
        package.display()
    );
    Ok(())
}

/// Unpacks those members of a package that match one of tar's patterns, if there are any.
pub(crate) fn unpack_members(package: &Path, directory: &Path, patterns: &[&str]) -> Result<()> {
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stdout = source.stdout.take().context("dpkg-deb has no output")?;
    // tar fails when a pattern matches nothing; whoever needs a member looks for it afterwards.
    Command::new("tar")
        .arg("--extract")
        .arg("--directory")
        .arg(directory)
        .arg("--wildcards")
        .args(patterns)
        .stdin(stdout)
        .stderr(Stdio::null())
        .status()
        .context("cannot run tar")?;
    let status = source.wait().context("cannot wait for dpkg-deb")?;
    ensure!(
        status.success(),
        "cannot unpack {}: {status}",
        package.display()
    );
    Ok(())
}

/// The sum of the sizes of all files below a directory, also while it changes.
fn size_of_files(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_files(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# a comment
URIs: http://one.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://two.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://three.example/debian
Suites: trixie
Components: main
";

    #[test]
    fn deb822_gives_both_archives() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        let mirror = Mirror::choose(&sources, None, None).unwrap();
        assert_eq!(mirror.main, "http://one.example/debian");
        assert_eq!(mirror.security, "http://two.example/debian-security");
    }

    #[test]
    fn other_publishers_are_not_taken_for_debian() {
        let sources = parse_one_line(
            "deb [signed-by=/etc/other.gpg] https://other.example/apt bookworm main\n\
             # deb http://no.example/debian bookworm main\n\
             deb-src http://no.example/debian bookworm main\n\
             deb http://one.example/debian/ bookworm main contrib\n",
        );
        assert_eq!(sources.len(), 2);
        let mirror = Mirror::choose(&sources, None, None).unwrap();
        assert_eq!(mirror.main, "http://one.example/debian/");
        assert_eq!(mirror.security, "http://one.example/debian-security");
    }

    #[test]
    fn the_archive_is_never_shown() {
        let mirror = Mirror {
            main: "http://one.example/debian".to_owned(),
            security: "http://two.example/debian-security".to_owned(),
        };
        let text = mirror.redact("E: http://one.example/debian/x 404 from two.example http://q/");
        assert_eq!(text, "E: <archive>/x 404 from <archive> <address>");
    }

    #[test]
    fn no_archive_is_a_clear_error() {
        let error = Mirror::choose(&[], None, None).unwrap_err().to_string();
        assert!(error.contains(MIRROR_VARIABLE), "{error}");
    }

    #[test]
    fn stanzas_of_apt_cache() {
        let packages = parse_packages(
            "Package: linux-image-arm64\nVersion: 2\nDepends: linux-image-2-arm64 (= 2), a | b:any\n\
             Size: 12\n\nPackage: linux-image-arm64\nVersion: 1\n\nPackage: linux-image-arm64\n\
             Version: 1\n",
        );
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].depends, ["linux-image-2-arm64", "a", "b"]);
        assert_eq!(packages[0].size_bytes, 12);
    }
}
