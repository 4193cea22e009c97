//! What a valid configuration needs and this machine lacks.

use super::{Config, Loaded};
use crate::net::files::{OpenError, RootRequest};
use crate::service::route::TargetSettings;

impl Loaded {
    /// Adds warnings about what is missing on this machine. May block for as long as its file
    /// systems do.
    #[must_use]
    pub fn check_machine(mut self) -> Loaded {
        self.warnings.extend(audio_root_problem(&self.config));
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
