//! Resource limits that end a process, made errors that it can tell.

/// A file that would grow over `RLIMIT_FSIZE` becomes an error of the write, `EFBIG`, instead of SIGXFSZ
/// (setrlimit(2)), which kills without a word and leaves half a payload in memory. Inherited by processes that
/// this one starts.
pub fn survive_file_size_limit() {
    // SAFETY: SIG_IGN is no function; nothing else in this process handles the signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::process::Command;

    /// In a process of its own: the limit cannot be taken back by everybody, and counts for all threads.
    #[test]
    fn a_write_over_the_limit_is_an_error() {
        const CHILD: &str = "KLEAP_TEST_FILE_SIZE_LIMIT";
        if let Ok(path) = std::env::var(CHILD) {
            survive_file_size_limit();
            let mut file = std::fs::File::create(path).unwrap();
            let error = file.write_all(&[0; 10_000_000]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
            return;
        }
        let path = std::env::temp_dir().join(format!("kleap-limit-{}", std::process::id()));
        let test = std::env::current_exe().unwrap();
        // In blocks of 512 or 1024 bytes, depending on the shell.
        let status = Command::new("sh")
            .args(["-c", "ulimit -f 8; exec \"$0\" --exact limits::tests::a_write_over_the_limit_is_an_error"])
            .arg(&test)
            .env(CHILD, &path)
            .status()
            .unwrap();
        let _ = std::fs::remove_file(&path);
        assert!(status.success(), "{status}");
    }
}
