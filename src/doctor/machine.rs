//! What this machine must have: folders, the log, descriptors, certificates, a clock.

#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]
#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{CheckRow, OtherClock};
use crate::config::Config;
use crate::logging::file::{self, FileProblem};
use crate::net::files::spool::SpoolRequest;
use crate::net::files::{OpenError, Root, RootRequest};
use crate::net::tls;
use crate::reactor::descriptors::Descriptors;
use crate::reactor::listeners::ListenOn;
use crate::service::route::TargetSettings;

/// Files of the audio folder that are looked at.
const FILES_MAX: usize = 10_000;

/// What is written to see whether the disk takes it, in bytes.
const TRIAL_BYTES: usize = 64 * 1024;

/// A certificate that ends sooner than this is worth a warning.
const RENEW_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// A difference between clocks from which on it is worth a warning. `Date` has whole seconds.
const SKEW_MAX: Duration = Duration::from_secs(5);

/// No clock of this program's users shows an earlier time: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// The audio folder is read, the folder for speech and the log are written to.
pub fn files(config: &Config) -> Vec<CheckRow> {
    let output = &config.gateway.session.output;
    let serves = |wanted: fn(&TargetSettings) -> bool| {
        config.gateway.routes.iter().any(|route| wanted(&route.target))
    };
    let mut rows = Vec::new();
    if serves(|target| *target == TargetSettings::Output) {
        rows.push(audio_folder(&output.audio_root));
    }
    if !output.spool.as_os_str().is_empty()
        && serves(|target| matches!(target, TargetSettings::Ingest(_)))
    {
        rows.push(spool(&output.spool));
    }
    rows.push(log(config));
    rows
}

fn audio_folder(folder: &Path) -> CheckRow {
    let name = "audio folder";
    let shown = folder.display();
    let fail = |why: &str, advice: &str| CheckRow::fail(name, format!("{shown}: {why}"), advice);
    match RootRequest::new(folder).run() {
        Ok(_) => {}
        Err(OpenError::NoRoot(errno)) => {
            let advice = match io::Error::from(errno).kind() {
                ErrorKind::NotFound => {
                    "create it, or correct `output.audio_root`: it is where workers write their audio"
                }
                ErrorKind::PermissionDenied => {
                    "let the gateway's user into it and read it (`chmod o+rx`, or a group)"
                }
                _ => "correct `output.audio_root`: it must be a folder",
            };
            return fail(&errno.to_string(), advice);
        }
        Err(error) => return fail(&format!("{error:?}"), "see to that shortage first"),
    }
    let newest = match newest_file(folder) {
        Ok(newest) => newest,
        // Files are opened by name, so that this is no failure.
        Err(error) => {
            return CheckRow::warn(
                name,
                format!("{shown}: its files cannot be listed ({error})"),
                "nothing, if the gateway's user may read the files themselves",
            );
        }
    };
    let Some((file, count)) = newest else {
        return CheckRow::ok(name, format!("{shown} can be read, and is empty"));
    };
    let opened = Root::new(folder, u64::MAX).request(&file).run();
    let read = opened
        .map_err(|error| format!("{error:?}"))
        .and_then(|opened| opened.read_at(&mut [0; 4096], 0).map_err(|error| error.to_string()));
    let newest = file.display();
    match read {
        Ok(_) => {
            CheckRow::ok(name, format!("{shown}: {newest} was read, the newest of {count} files"))
        }
        Err(why) => fail(
            &format!("{newest}, the newest file, cannot be read: {why}"),
            "let workers write files that the gateway's user may read (umask 022, or a group)",
        ),
    }
}

/// The newest file directly in the folder, and how many there are.
fn newest_file(folder: &Path) -> io::Result<Option<(PathBuf, usize)>> {
    let mut newest = None;
    let mut count = 0;
    for entry in fs::read_dir(folder)?.take(FILES_MAX) {
        let entry = entry?;
        // `DirEntry::metadata` follows no link, as the gateway does.
        let Ok(metadata) = entry.metadata() else { continue };
        if !metadata.is_file() {
            continue;
        }
        count += 1;
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if newest.as_ref().is_none_or(|(at, _)| *at < modified) {
            newest = Some((modified, PathBuf::from(entry.file_name())));
        }
    }
    Ok(newest.map(|(_, file)| (file, count)))
}

fn spool(folder: &Path) -> CheckRow {
    let shown = folder.display();
    let failed = |why: String| {
        let advice = "create it for the gateway's user, or correct `output.spool`";
        CheckRow::fail("speech folder", format!("{shown}: no file can be written: {why}"), advice)
    };
    match SpoolRequest::new(folder).run() {
        Ok(file) => match file.write(&[0; 4096], 0) {
            Ok(_) => CheckRow::ok("speech folder", format!("{shown}: a file was written")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                CheckRow::ok("speech folder", format!("{shown}: a file was made"))
            }
            Err(error) => failed(error.to_string()),
        },
        Err(OpenError::NoRoot(errno) | OpenError::Shortage(errno)) => failed(errno.to_string()),
        Err(error) => failed(format!("{error:?}")),
    }
}

/// The log can be appended to, and its disk takes more. Nothing is written into the log itself.
fn log(config: &Config) -> CheckRow {
    let name = "log";
    let Some(path) = &config.log.file else {
        return CheckRow::ok(name, "goes to standard error");
    };
    let shown = path.display();
    let advice = |error: &io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room, and set `[log] max_size` so that the log cannot fill the disk"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "let the gateway's user write there, or change `[log] file`"
        }
        _ => "change `[log] file`",
    };
    let fail = |error: &io::Error| CheckRow::fail(name, format!("{shown}: {error}"), advice(error));
    match file::check(path, config.log.max_size) {
        Ok(()) => {}
        Err(FileProblem::Write(error)) => return fail(&error),
        Err(FileProblem::Rotate(error)) => {
            return CheckRow::fail(
                name,
                format!("{shown} can be written, but not rotated: {error}"),
                "let the gateway's user write to its folder, or set `[log] max_size = \"0\"`",
            );
        }
    }
    // A folder that may not be changed is no failure for a file that is there.
    match file::nearest_folder(path).map(try_folder) {
        None | Some(Ok(())) => {
            CheckRow::ok(name, format!("{shown} can be written, and its disk has room"))
        }
        Some(Err(error)) if error.kind() == ErrorKind::PermissionDenied && path.exists() => {
            CheckRow::ok(name, format!("{shown} can be written"))
        }
        Some(Err(error)) => fail(&error),
    }
}

/// Writes a file of its own and removes it again.
fn try_folder(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".doctor-{:016x}", fastrand::u64(..)));
    let mut file = File::create_new(&path)?;
    let written = file.write_all(&vec![b'\n'; TRIAL_BYTES]).and_then(|()| file.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Descriptors.
pub fn limits(config: &Config) -> Vec<CheckRow> {
    let max = config.gateway.limits.max_connections;
    let descriptors = Descriptors::raise_limit();
    let row = match descriptors.shortage_for(max) {
        None => CheckRow::ok("descriptors", format!("enough for max_connections = {max}")),
        Some((needed, limit)) => CheckRow::warn(
            "descriptors",
            format!("max_connections = {max} may need {needed}, and {limit} are allowed"),
            format!(
                "raise the limit (`LimitNOFILE={needed}` of systemd, `ulimit -n`), or lower \
                 max_connections"
            ),
        ),
    };
    vec![row]
}

/// When the certificates of the listeners end.
pub fn certificates(config: &Config, now: SystemTime) -> Vec<CheckRow> {
    if !config.reactor.listen.iter().any(ListenOn::has_tls) {
        return Vec::new();
    }
    let files = config.gateway.tls.certificate.iter();
    files.filter_map(|file| Some(judge_validity(file, tls::validity(file)?, now))).collect()
}

fn judge_validity(file: &str, validity: tls::Validity, now: SystemTime) -> CheckRow {
    let name = "certificates";
    let tls::Validity { begins, ends } = validity;
    let day = |at| httpdate::fmt_http_date(at);
    if now < begins {
        let detail = format!("{file} is not valid before {}", day(begins));
        return CheckRow::fail(
            name,
            detail,
            "check this machine's clock, or take another certificate",
        );
    }
    match ends.duration_since(now) {
        Err(_) => CheckRow::fail(
            name,
            format!("{file} ended at {}", day(ends)),
            "renew it, then send HUP to the gateway",
        ),
        Ok(left) if left < RENEW_BEFORE => CheckRow::warn(
            name,
            format!("{file} ends in {} days, at {}", left.as_secs() / 86_400, day(ends)),
            "renew it, then send HUP to the gateway",
        ),
        Ok(left) => {
            CheckRow::ok(name, format!("{file} is valid for {} more days", left.as_secs() / 86_400))
        }
    }
}

/// Whether the clock can be right.
pub(super) fn clock(now: SystemTime, others: &[OtherClock]) -> CheckRow {
    let name = "clock";
    let advice = "set it, and let NTP keep it (`timedatectl set-ntp true`)";
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        let shown = httpdate::fmt_http_date(now.max(SystemTime::UNIX_EPOCH));
        return CheckRow::fail(name, format!("it shows {shown}, which cannot be"), advice);
    }
    let skew = |other: &OtherClock| {
        let ahead = other.ours.duration_since(other.theirs);
        ahead.unwrap_or_else(|behind| behind.duration())
    };
    let off = others.iter().map(|other| (skew(other), &other.whose));
    match off.max() {
        Some((skew, whose)) if skew > SKEW_MAX => CheckRow::warn(
            name,
            format!("it differs by {:.0} s from that of {whose}", skew.as_secs_f64()),
            advice,
        ),
        Some(_) => CheckRow::ok(name, "it agrees with those of backends and Redis"),
        None => CheckRow::ok(
            name,
            format!("it shows {}; no other to compare", httpdate::fmt_http_date(now)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckState;
    use super::*;

    fn at(days: i64) -> SystemTime {
        let now = EARLIEST.as_secs() as i64 + 1000 * 86_400;
        SystemTime::UNIX_EPOCH + Duration::from_secs((now + days * 86_400) as u64)
    }

    #[test]
    fn certificates_are_judged_by_what_is_left() {
        for (begins, ends, state, words) in [
            (-1, 90, CheckState::Ok, "90 more days"),
            (-1, 13, CheckState::Warn, "ends in 13 days"),
            (-10, -1, CheckState::Fail, "ended at"),
            (1, 90, CheckState::Fail, "not valid before"),
        ] {
            let validity = tls::Validity { begins: at(begins), ends: at(ends) };
            let row = judge_validity("a.pem", validity, at(0));
            assert!(row.state == state && row.detail.contains(words), "{row:?}");
        }
    }

    #[test]
    fn clocks_are_compared() {
        let other = |seconds| OtherClock {
            whose: "redis".into(),
            theirs: at(0) + Duration::from_secs(seconds),
            ours: at(0),
        };
        assert_eq!(clock(at(0), &[]).state, CheckState::Ok);
        assert_eq!(clock(at(0), &[other(2)]).state, CheckState::Ok);
        let row = clock(at(0), &[other(2), other(100)]);
        assert!(row.state == CheckState::Warn && row.detail.contains("100 s from that of redis"));
        assert_eq!(clock(SystemTime::UNIX_EPOCH, &[]).state, CheckState::Fail);
    }
}
