//! One accepted connection, phase by phase.
