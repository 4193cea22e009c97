//! Certificates for this machine: `aivtuber-gateway cert`, and what `demo --https` serves with.
//!
//! Browsers give the microphone only to secure pages, so whoever opens a page from another machine
//! needs HTTPS, and no public authority signs certificates for names and addresses inside a private
//! network. So there is a CA of the user's own, made once and kept in the user's data folder
//! (`docs/https.md` shows how devices are made to trust it), and certificates that it signs.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a command of its own, which may wait"
)]

#[cfg(feature = "tls")]
mod authority;
mod machine;
mod subject;
#[cfg(not(feature = "tls"))]
mod without;

#[cfg(feature = "tls")]
use authority::Authority;
#[cfg(not(feature = "tls"))]
use without::Authority;

use crate::config::quoted;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use machine::lan_address;
use subject::CertSubject;

/// The certificate of the CA, in the data folder.
const CA_CERTIFICATE: &str = "ca.pem";

/// Its key.
const CA_KEY: &str = "ca.key";

/// What only this user may read.
const PRIVATE: u32 = 0o600;

/// What everybody may read.
const PUBLIC: u32 = 0o644;

/// A certificate and its key, in PEM.
struct Certified {
    chain: String,
    key: String,
    /// Its last day, as `2027-12-28`.
    last_day: String,
}

/// The folder of this user for what the program makes: `$XDG_DATA_HOME/aivtuber-gateway`.
///
/// # Errors
/// A sentence, when the environment names none.
pub fn data_folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = folder("XDG_DATA_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/share")))
        .ok_or("neither XDG_DATA_HOME nor HOME names a folder for the CA")?;
    Ok(data.join(env!("CARGO_PKG_NAME")))
}

/// The file with the certificate of the CA in the folder `data`.
pub fn ca_file(data: &Path) -> PathBuf {
    data.join(CA_CERTIFICATE)
}

/// Writes a certificate and its key to `folder`, for `names`, or for this machine if there are
/// none. The CA is in the folder `data`. Returns what to tell the user.
///
/// # Errors
/// A sentence.
pub fn write(folder: &Path, names: &[String], data: &Path) -> Result<String, String> {
    let subjects = match names {
        [] => machine::subjects(),
        names => names.iter().map(|name| name.parse()).collect::<Result<Vec<CertSubject>, _>>()?,
    };
    let certified = Authority::open(data)?.certify(&subjects)?;
    let name = match names {
        [] => machine::host_name().unwrap_or_else(|| "localhost".to_owned()),
        [first, ..] => first.replace('*', "_wildcard"),
    };
    make_folder(folder, 0o755)?;
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let (chain, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    write_file(&key, &certified.key, PRIVATE)?;
    write_file(&chain, &certified.chain, PUBLIC)?;
    let listed = subjects.iter().map(CertSubject::to_string).collect::<Vec<_>>().join(", ");
    Ok(format!(
        "A certificate for {listed}, valid to {last_day}.\n\
         \n\
         \x20   [server]\n\
         \x20   listen = [\"0.0.0.0:8000\", \"tls://0.0.0.0:8443\"]\n\
         \n\
         \x20   [tls]\n\
         \x20   certificate = {chain}\n\
         \x20   key = {key}\n\
         \n\
         Browsers accept it once they trust the CA in {ca}:\n\
         docs/https.md shows how. Keep {CA_KEY} beside it to yourself.\n",
        last_day = certified.last_day,
        chain = quoted(&chain.display().to_string()),
        key = quoted(&key.display().to_string()),
        ca = ca_file(data).display(),
    ))
}

/// Writes a certificate for this machine into the folder `data`, with its key in the same file.
///
/// # Errors
/// A sentence.
pub fn write_for_demo(data: &Path) -> Result<PathBuf, String> {
    let certified = Authority::open(data)?.certify(&machine::subjects())?;
    // One file, so that two demos that start at once never mix two certificates.
    let path = data.join("demo.pem");
    write_file(&path, &format!("{}{}", certified.chain, certified.key), PRIVATE)?;
    Ok(path)
}

fn make_folder(folder: &Path, mode: u32) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
        .map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))
}

/// Replaces a file as a whole: whoever reads it finds the old text or the new one.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        format!("cannot write {}: {error}", path.display())
    })
}

/// Locks a folder until the file is dropped, against other processes of this program.
fn lock(folder: &Path) -> Result<File, String> {
    let lock = || {
        let file = File::open(folder)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        std::io::Result::Ok(file)
    };
    lock().map_err(|error| format!("cannot lock {}: {error}", folder.display()))
}

#[cfg(feature = "tls")]
#[cfg(test)]
mod tests;
