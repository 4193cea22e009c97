//! The files of `[tls]`, which are read after the configuration, and what needs them.

use super::{Config, Loaded, Problem, Problems};
use crate::net::tls::{self, LoadError, Uses};
use crate::reactor::listeners::ListenOn;
use crate::service::link;
use crate::service::url::{BackendSecurity, BackendUrl};
use crate::session::RedirectHttp;

impl Loaded {
    /// Reads certificates, keys and roots, as far as something uses them. May block for as long as
    /// their file systems do.
    ///
    /// # Errors
    /// What cannot be used, and why.
    pub fn load_certificates(mut self) -> Result<Loaded, Problems> {
        let problem = |key: &str, why| {
            let place = self.path.as_ref().map(|path| path.display().to_string());
            let place = place.unwrap_or("the configuration".into());
            Problems(vec![Problem { place, key: Some(key.into()), why }])
        };
        let config = &mut self.config;
        check_redirect(config).map_err(|why| problem("server.redirect_http", why))?;
        let uses = uses(config);
        tls::load(&mut config.gateway.tls, uses)
            .map_err(|LoadError { key, why }| problem(&format!("tls.{key}"), why))?;
        self.warnings.extend(insecure_backends(config));
        Ok(self)
    }
}

/// Serves with the certificate and the key in `file`, and sends browsers there.
pub(super) fn use_file(config: &mut Config, file: &str) {
    config.gateway.tls.certificate = vec![file.to_owned()];
    config.gateway.tls.key = vec![file.to_owned()];
    if tls_port(config).is_some() {
        config.gateway.session.redirect_http = RedirectHttp::ToListener;
    }
}

fn uses(config: &Config) -> Uses {
    Uses {
        listeners: config.reactor.listen.iter().any(ListenOn::has_tls),
        dialed: backends(config).any(|(_, url)| url.security() != BackendSecurity::Plain)
            || config.gateway.link.urls.iter().any(|url| link::has_tls(url)),
    }
}

fn backends(config: &Config) -> impl Iterator<Item = (&str, &BackendUrl)> {
    config
        .gateway
        .routes
        .iter()
        .flat_map(|route| route.target.urls().iter().map(|url| (&*route.name, url)))
}

/// Warnings about backends whose certificates are not verified, for each start and reload.
fn insecure_backends(config: &Config) -> Vec<String> {
    let insecure =
        backends(config).filter(|(_, url)| url.security() == BackendSecurity::UnverifiedTls);
    let warning = |(route, url): (&str, &BackendUrl)| {
        format!(
            "route `{route}`: insecure = true, so that anyone on the way can pass for {}",
            url.public_text()
        )
    };
    insecure.map(warning).collect()
}

/// `true` leads to the first `tls://` address, whose port must be known.
fn check_redirect(config: &mut Config) -> Result<(), String> {
    note_port(config);
    let session = &config.gateway.session;
    match (session.redirect_http, session.tls_port) {
        (RedirectHttp::ToListener, None) => {
            Err("true needs a tls:// address with a port in server.listen; expected the port that \
             browsers are sent to"
                .into())
        }
        _ => Ok(()),
    }
}

/// Where browsers without TLS are sent follows from where the gateway listens.
pub(super) fn note_port(config: &mut Config) {
    config.gateway.session.tls_port = tls_port(config);
}

/// The port of the first `tls://` address, if the configuration names it.
fn tls_port(config: &Config) -> Option<u16> {
    let listener = config.reactor.listen.iter().find(|on| on.has_tls());
    listener.and_then(ListenOn::address).map(|at| at.port()).filter(|port| *port != 0)
}
