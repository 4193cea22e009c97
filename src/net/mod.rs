//! Sockets without rules: nonblocking transports, remembered readiness, tokens.
