//! What is left of TLS in a build without it: nothing can be loaded, so no layer is ever asked.

use super::{LoadError, Settings, Stream, Uses, Validity, Verify};
use crate::net::Socket;
use std::io::{self, ErrorKind};

/// There are none.
pub enum ServerKeys {}

/// There are none.
pub enum Roots {}

/// Refuses.
#[derive(Debug, Default)]
pub struct Layer(Settings);

/// Refuses what needs TLS.
///
/// # Errors
/// If anything does.
pub fn load(settings: &mut Settings, uses: Uses) -> Result<(), LoadError> {
    let _ = (&settings.loaded.server, &settings.loaded.roots);
    match uses {
        Uses { listeners: false, dialed: false } => Ok(()),
        _ => Err(LoadError {
            key: "certificate",
            why: "this program was built without TLS (the feature `tls`)".into(),
        }),
    }
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn unverified<'s>(_: impl Stream + 's, _: &str) -> io::Result<Box<dyn Stream + 's>> {
    Err(ErrorKind::Unsupported.into())
}

/// Nothing is read.
pub fn validity(_: &str) -> Option<Validity> {
    None
}

/// No certificate was asked for.
pub fn is_untrusted(_: &io::Error) -> bool {
    false
}

impl Layer {
    /// Keeps the settings.
    ///
    /// # Errors
    /// None.
    pub fn new(settings: Settings) -> Result<Layer, String> {
        Ok(Layer(settings))
    }

    /// Keeps the settings.
    ///
    /// # Errors
    /// None.
    pub fn reload(&mut self, settings: Settings) -> Result<(), String> {
        self.0 = settings;
        Ok(())
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0
    }

    /// Refuses.
    pub fn accept(&self, _: Socket) -> Option<Socket> {
        None
    }

    /// Refuses.
    pub fn accept_after(&self, _: Socket, _: Vec<u8>) -> Option<Socket> {
        None
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn dial_redis(&self, _: Socket, _: &str) -> io::Result<Socket> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn connect_redis<'s>(
        &self,
        _: impl Stream + 's,
        _: &str,
    ) -> io::Result<Box<dyn Stream + 's>> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn connect<'s>(
        &self,
        _: impl Stream + 's,
        _: &str,
        _: Verify,
    ) -> io::Result<Box<dyn Stream + 's>> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn dial(&self, _: Socket, _: &str, _: Verify) -> io::Result<Socket> {
        Err(ErrorKind::Unsupported.into())
    }
}
