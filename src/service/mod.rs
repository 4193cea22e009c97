//! Rules without sockets: where a request goes, which backend is next, who is admitted, what is told about it all.
