//! Secrets that a person gives: from a file, from standard input, or typed without echo. Never from an argument.

use crate::error::{Error, Result};
use crate::files;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use zeroize::Zeroizing;

/// Longest secret that is read.
const MAX: u64 = 4096;

/// The text of a file that others must not be able to read.
pub(crate) fn from_file(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    check_file(what, path)?;
    files::read_required(path).map(Zeroizing::new)
}

/// Refuses a file of a secret that others can read.
pub(crate) fn check_file(what: &str, path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, &e))?;
    let mode = meta.permissions().mode() & 0o777;
    if meta.is_file() && mode & 0o077 != 0 {
        let message = format!("{what} in {} can be read by others (mode {mode:o})", path.display());
        return Err(Error::usage(message).hint(format!("chmod 600 {}", path.display())));
    }
    Ok(())
}

/// What comes on standard input.
pub(crate) fn from_stdin(what: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(MAX).read_to_string(&mut text);
    read.map_err(|e| Error::failed(format!("cannot read {what} from standard input: {e}")))?;
    Ok(text)
}

/// Asks on the terminal, without echo.
pub(crate) fn prompt(what: &str) -> Result<Zeroizing<String>> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let fault = |e: std::io::Error| Error::failed(format!("cannot ask on the terminal: {e}"));
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(fault)?;
    let before = tcgetattr(&terminal).map_err(|e| fault(e.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    write!(terminal, "{what}: ").map_err(fault)?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|e| fault(e.into()))?;
    let mut line = Zeroizing::new(String::new());
    let input = terminal.try_clone().map_err(fault)?;
    let read = BufReader::new(input.take(MAX)).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Now, &before).map_err(|e| fault(e.into()))?;
    writeln!(terminal).map_err(fault)?;
    read.map_err(fault)?;
    Ok(line)
}
