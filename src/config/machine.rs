//! What a valid configuration needs and this machine lacks.

use super::{Config, Loaded};
use crate::logging::file::{self, FileProblem};
use crate::net::files::assets::{AssetRequest, FoundAsset};
use crate::net::files::spool::SpoolRequest;
use crate::net::files::{OpenError, RootRequest};
use crate::service::route::{RouteSettings, TargetSettings};

impl Loaded {
    /// Adds warnings about what is missing on this machine. May block for as long as its file
    /// systems do.
    #[must_use]
    pub fn check_machine(mut self) -> Loaded {
        self.warnings.extend(audio_root_problem(&self.config));
        self.warnings.extend(spool_problem(&self.config));
        self.warnings.extend(log_problem(&self.config));
        self.warnings.extend(self.config.gateway.routes.iter().filter_map(files_problem));
        self
    }
}

/// What is wrong with the folder of audio files, if results are served from it. No error: it may
/// appear later.
fn audio_root_problem(config: &Config) -> Option<String> {
    let output = &config.gateway.session.output;
    let is_served =
        config.gateway.routes.iter().any(|route| route.target == TargetSettings::Output);
    match RootRequest::new(&output.audio_root).run() {
        Err(OpenError::NoRoot(errno)) if is_served => Some(format!(
            "output.audio_root: the folder {} cannot be opened: {errno}",
            output.audio_root.display()
        )),
        _ => None,
    }
}

/// What is missing of the files that a route serves. No error: it may appear later.
fn files_problem(route: &RouteSettings) -> Option<String> {
    let TargetSettings::Files(files) = &route.target else { return None };
    let (name, folder) = (&route.name, files.folder.display());
    if let Err(OpenError::NoRoot(errno)) = RootRequest::new(&files.folder).run() {
        return Some(format!("route `{name}`: the folder {folder} cannot be opened: {errno}"));
    }
    let fallback = files.fallback.as_ref()?;
    let request = AssetRequest {
        folder: files.folder.clone(),
        name: (&**fallback).into(),
        codings: &[],
        fallback: None,
    };
    let why = match request.run() {
        Ok(FoundAsset::File(_)) | Err(OpenError::Shortage(_)) => return None,
        Ok(FoundAsset::Folder) => OpenError::NotRegular,
        Err(error) => error,
    };
    Some(format!("route `{name}`: the fallback {fallback} in {folder} cannot be opened: {why}"))
}

/// What is wrong with the folder for speech, if workers send any. No error: it may appear later.
fn spool_problem(config: &Config) -> Option<String> {
    let spool = &config.gateway.session.output.spool;
    let is_ingest = |route: &RouteSettings| matches!(route.target, TargetSettings::Ingest(_));
    if spool.as_os_str().is_empty() || !config.gateway.routes.iter().any(is_ingest) {
        return None;
    }
    let why = match SpoolRequest::new(spool).run() {
        Ok(_) => return None,
        Err(OpenError::NoRoot(errno) | OpenError::Shortage(errno)) => errno.to_string(),
        Err(error) => format!("{error:?}"),
    };
    let folder = spool.display();
    Some(format!("output.spool: no file can be written in the folder {folder}: {why}"))
}

/// What is wrong with the log file. No error: until it can be written, lines go to standard error.
fn log_problem(config: &Config) -> Option<String> {
    let path = config.log.file.as_ref()?;
    let shown = path.display();
    match file::check(path, config.log.max_size) {
        Ok(()) => None,
        Err(FileProblem::Write(error)) => {
            Some(format!("log.file: {shown} cannot be written: {error}"))
        }
        Err(FileProblem::Rotate(error)) => {
            Some(format!("log.file: {shown} can be written, but not rotated: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::service::assets::Files;
    use crate::service::route::Access;
    use crate::service::url::Template;
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn warnings(config: Config) -> Vec<String> {
        Loaded { config, warnings: vec!["other".into()], path: None }.check_machine().warnings
    }

    #[test]
    fn a_missing_audio_root_is_a_warning_where_results_are_served() {
        let mut config = Config::default();
        config.gateway.session.output.audio_root = "/nowhere/at/all".into();
        let expected = "output.audio_root: the folder /nowhere/at/all cannot be opened: \
                        No such file or directory (os error 2)";
        assert_eq!(warnings(config.clone()), ["other", expected]);
        let mut plain_file = config.clone();
        plain_file.gateway.session.output.audio_root = "/proc/self/status".into();
        assert!(warnings(plain_file)[1].ends_with("Not a directory (os error 20)"));
        config.gateway.routes.retain(|route| route.target != TargetSettings::Output);
        assert_eq!(warnings(config.clone()), ["other"]);
        config.gateway.session.output.audio_root = std::env::temp_dir();
        config.gateway.routes = Config::default().gateway.routes;
        assert_eq!(warnings(config), ["other"]);
    }

    /// Runs `check` as a user that must heed the modes of files, as root need not.
    fn without_privileges<T: Send>(check: impl FnOnce() -> T + Send) -> T {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        let unprivileged = || {
            // Of this thread alone.
            set_capabilities(None, none).unwrap();
            check()
        };
        std::thread::scope(|scope| scope.spawn(unprivileged).join().unwrap())
    }

    #[test]
    fn an_audio_root_that_may_not_be_read_is_a_warning() {
        let folder = TestFolder::make();
        let audio = folder.join("closed/audio");
        std::fs::create_dir_all(&audio).unwrap();
        let closing = |path: &Path| {
            let mode = |mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            mode(0o600);
            let mut config = Config::default();
            config.gateway.session.output.audio_root.clone_from(&audio);
            let found = without_privileges(|| warnings(config));
            mode(0o700);
            found
        };
        let denied = format!(
            "output.audio_root: the folder {} cannot be opened: Permission denied (os error 13)",
            audio.display()
        );
        assert_eq!(closing(&audio), ["other", denied.as_str()], "the folder itself");
        assert_eq!(closing(&folder.join("closed")), ["other", denied.as_str()], "one above it");
        let mut config = Config::default();
        config.gateway.session.output.audio_root.clone_from(&audio);
        assert_eq!(without_privileges(|| warnings(config)), ["other"]);
    }

    #[test]
    fn missing_files_of_a_route_are_a_warning() {
        let folder = TestFolder::make();
        let warning = |name: &str, fallback: Option<&str>| {
            let files =
                Files { folder: folder.join(name).into(), fallback: fallback.map(Into::into) };
            let mut config = Config::default();
            config.gateway.routes = vec![RouteSettings {
                name: "app".into(),
                path: Template::parse("/{file...}").unwrap(),
                target: TargetSettings::Files(files),
            }];
            let found = warnings(config).into_iter().nth(1);
            found.map(|why| why.replace(&folder.display().to_string(), "."))
        };
        std::fs::create_dir_all(folder.join("dist/sub")).unwrap();
        std::fs::write(folder.join("dist/index.html"), "").unwrap();
        assert_eq!(warning("dist", None), None);
        assert_eq!(warning("dist", Some("index.html")), None);
        for (name, fallback, expected) in [
            ("none", None, "the folder ./none cannot be opened: No such file or directory"),
            ("dist/index.html", None, "the folder ./dist/index.html cannot be opened: Not a dir"),
            (
                "dist",
                Some("404.html"),
                "the fallback 404.html in ./dist cannot be opened: not found",
            ),
            ("dist", Some("sub"), "the fallback sub in ./dist cannot be opened: not a regular"),
        ] {
            let found = warning(name, fallback).unwrap();
            assert!(found.starts_with(&format!("route `app`: {expected}")), "{found}");
        }
    }

    #[test]
    fn a_missing_spool_folder_is_a_warning_where_workers_send_speech() {
        let mut config = Config::default();
        config.gateway.session.output.audio_root = std::env::temp_dir();
        config.gateway.session.output.spool = "/nowhere/at/all".into();
        assert_eq!(warnings(config.clone()), ["other"]);
        config.gateway.routes[1].target = TargetSettings::Ingest(Access::default());
        let expected = "output.spool: no file can be written in the folder /nowhere/at/all: \
                        No such file or directory (os error 2)";
        assert_eq!(warnings(config.clone()), ["other", expected]);
        config.gateway.session.output.spool = std::env::temp_dir();
        assert_eq!(warnings(config.clone()), ["other"]);
        config.gateway.session.output.spool = "".into();
        assert_eq!(warnings(config), ["other"]);
    }

    #[test]
    fn a_log_file_that_cannot_be_written_is_a_warning() {
        let mut config = Config::default();
        config.gateway.session.output.audio_root = std::env::temp_dir();
        config.log.file = Some(std::env::temp_dir());
        let expected = format!(
            "log.file: {} cannot be written: Is a directory (os error 21)",
            std::env::temp_dir().display()
        );
        assert_eq!(warnings(config.clone()), ["other", expected.as_str()]);
        config.log.file = Some("/dev/null".into());
        assert_eq!(warnings(config.clone()), ["other"]);
        config.log.file = None;
        assert_eq!(warnings(config), ["other"]);
    }
}
