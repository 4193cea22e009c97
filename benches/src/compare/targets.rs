//! Floors, peers and the gateway: how each is configured and started.
//!
//! Peers run as Debian ships them, one worker on the one core, with timeouts that never trigger and
//! access logs off. Further changes are in the target's title.

use super::process::{Cores, Process, family, memory, rest};
use crate::Fault;
use crate::net::{self, free_port};
use crate::resp::{self, Value};
use crate::tls::Certificate;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The part of a channel's name before the task id.
pub const CHANNEL_PREFIX: &str = "task_response:";
/// A channel prefix that no target listens to.
pub const DEAF_PREFIX: &str = "unheard_response:";
/// The path that is passed on as plain HTTP, and the one below which files are.
pub const API: &str = "/api/";
pub const FILES: &str = "/files/";
/// Timeout for the subscriber to subscribe.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(10);

/// What a row needs of its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Relay `/ws/input`.
    Relay,
    /// Deliver results from a Redis of its own (or through its own inbox), and relay.
    Results,
    /// Send the audio file.
    Audio,
}

/// A program and one way to run it.
pub struct Target {
    pub id: &'static str,
    pub title: &'static str,
    kind: Kind,
}

/// Environment variables that would override the gateway's configuration.
const OVERRIDES: [&str; 6] = [
    "INPUT_HANDLER_URL",
    "OUTPUT_HANDLER_URL",
    "REDIS_URL",
    "REDIS_HOST",
    "REDIS_PORT",
    "AIVTUBER_GATEWAY_LOG",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe { splice: bool, door: Door },
    Subscriber,
    Copy { buffer: usize },
    Speech(Store),
    Uvicorn,
    Haproxy { splice: bool, buffers: Option<u32>, door: Door },
    Nginx { buffers: Option<&'static str>, door: Door },
    Caddy,
    Gateway(Setup),
}

/// How the gateway runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setup {
    inbox: bool,
    spool: bool,
    log: bool,
    versus: bool,
    twin: Option<Twin>,
    door: Door,
}

/// What a target serves besides WebSockets from one TCP socket to another, or in place of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Plain,
    /// The backend is reached over a Unix socket.
    Unix,
    /// Requests in plain HTTP, and files.
    Http,
    /// Clients use TLS.
    Tls,
}

/// What the bare way of speech sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Memory,
    Spool,
    Files,
}

/// A second process beside the first one, on the same address, and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// On the load generator's core: both run at the same time.
    LoadCore,
    /// On the targets' core, like the first one: shows only what a second process adds.
    TargetCore,
}

const GATEWAY: Setup =
    Setup { inbox: false, spool: false, log: false, versus: false, twin: None, door: Door::Plain };

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        id: "pipe",
        title: "floor: byte pipe, nothing parsed",
        kind: Kind::Pipe { splice: false, door: Door::Plain },
    },
    Target {
        id: "splice",
        title: "floor: the same, splicing while a direction streams",
        kind: Kind::Pipe { splice: true, door: Door::Plain },
    },
    Target { id: "subscriber", title: "floor: bare Redis subscriber", kind: Kind::Subscriber },
    Target {
        id: "copy-64k",
        title: "floor: copy loop, 64 KiB a time",
        kind: Kind::Copy { buffer: 64 << 10 },
    },
    Target {
        id: "copy-256k",
        title: "floor: copy loop, 256 KiB a time",
        kind: Kind::Copy { buffer: 256 << 10 },
    },
    Target {
        id: "haproxy",
        title: "HAProxy",
        kind: Kind::Haproxy { splice: false, buffers: None, door: Door::Plain },
    },
    Target {
        id: "haproxy-splice",
        title: "HAProxy, splice always",
        kind: Kind::Haproxy { splice: true, buffers: None, door: Door::Plain },
    },
    Target {
        id: "haproxy-64k",
        title: "HAProxy, 64 KiB buffers",
        kind: Kind::Haproxy { splice: false, buffers: Some(65_536), door: Door::Plain },
    },
    Target { id: "nginx", title: "nginx", kind: Kind::Nginx { buffers: None, door: Door::Plain } },
    Target {
        id: "nginx-64k",
        title: "nginx, 64 KiB buffers",
        kind: Kind::Nginx { buffers: Some("64k"), door: Door::Plain },
    },
    Target {
        id: "nginx-file",
        title: "nginx, plain HTTP, sendfile",
        kind: Kind::Nginx { buffers: None, door: Door::Plain },
    },
    Target {
        id: "speech",
        title: "floor: bare ingest, in memory",
        kind: Kind::Speech(Store::Memory),
    },
    Target {
        id: "speech-spool",
        title: "floor: bare ingest, files in a folder",
        kind: Kind::Speech(Store::Spool),
    },
    Target {
        id: "speech-files",
        title: "floor: files that grow, with inotify",
        kind: Kind::Speech(Store::Files),
    },
    Target { id: "uvicorn", title: "a small ingest in Python, on uvicorn", kind: Kind::Uvicorn },
    Target {
        id: "gateway-spool",
        title: "aivtuber-gateway, embedded inbox, speech in a folder",
        kind: Kind::Gateway(Setup { inbox: true, spool: true, ..GATEWAY }),
    },
    Target { id: "caddy", title: "Caddy", kind: Kind::Caddy },
    Target { id: "gateway", title: "aivtuber-gateway", kind: Kind::Gateway(GATEWAY) },
    Target {
        id: "pipe-unix",
        title: "floor: byte pipe, Unix backend",
        kind: Kind::Pipe { splice: false, door: Door::Unix },
    },
    Target {
        id: "haproxy-unix",
        title: "HAProxy, Unix backend",
        kind: Kind::Haproxy { splice: false, buffers: None, door: Door::Unix },
    },
    Target {
        id: "nginx-unix",
        title: "nginx, Unix backend",
        kind: Kind::Nginx { buffers: None, door: Door::Unix },
    },
    Target {
        id: "gateway-unix",
        title: "aivtuber-gateway, Unix backend",
        kind: Kind::Gateway(Setup { door: Door::Unix, ..GATEWAY }),
    },
    Target {
        id: "versus-unix",
        title: "aivtuber-gateway, the other build, Unix backend",
        kind: Kind::Gateway(Setup { door: Door::Unix, versus: true, ..GATEWAY }),
    },
    Target {
        id: "haproxy-tls",
        title: "HAProxy, TLS",
        kind: Kind::Haproxy { splice: false, buffers: None, door: Door::Tls },
    },
    Target {
        id: "nginx-tls",
        title: "nginx, TLS",
        kind: Kind::Nginx { buffers: None, door: Door::Tls },
    },
    Target {
        id: "nginx-64k-tls",
        title: "nginx, TLS, 64 KiB buffers",
        kind: Kind::Nginx { buffers: Some("64k"), door: Door::Tls },
    },
    Target {
        id: "gateway-tls",
        title: "aivtuber-gateway, TLS",
        kind: Kind::Gateway(Setup { door: Door::Tls, ..GATEWAY }),
    },
    Target {
        id: "versus-tls",
        title: "aivtuber-gateway, the other build, TLS",
        kind: Kind::Gateway(Setup { door: Door::Tls, versus: true, ..GATEWAY }),
    },
    Target {
        id: "gateway-http",
        title: "aivtuber-gateway, routes for plain HTTP and files",
        kind: Kind::Gateway(Setup { door: Door::Http, ..GATEWAY }),
    },
    Target {
        id: "versus-http",
        title: "aivtuber-gateway, the other build, routes for plain HTTP and files",
        kind: Kind::Gateway(Setup { door: Door::Http, versus: true, ..GATEWAY }),
    },
    Target {
        id: "gateway-inbox",
        title: "aivtuber-gateway, embedded inbox",
        kind: Kind::Gateway(Setup { inbox: true, ..GATEWAY }),
    },
    Target {
        id: "gateway-info",
        title: "aivtuber-gateway, log level info, /metrics read every second",
        kind: Kind::Gateway(Setup { log: true, ..GATEWAY }),
    },
    Target {
        id: "gateway-two",
        title: "aivtuber-gateway, two processes, one on each core",
        kind: Kind::Gateway(Setup { twin: Some(Twin::LoadCore), ..GATEWAY }),
    },
    Target {
        id: "gateway-two-here",
        title: "aivtuber-gateway, two processes, both on the targets' core",
        kind: Kind::Gateway(Setup { twin: Some(Twin::TargetCore), ..GATEWAY }),
    },
    Target {
        id: "versus",
        title: "aivtuber-gateway, the other build",
        kind: Kind::Gateway(Setup { versus: true, ..GATEWAY }),
    },
    Target {
        id: "versus-inbox",
        title: "aivtuber-gateway, the other build, embedded inbox",
        kind: Kind::Gateway(Setup { inbox: true, versus: true, ..GATEWAY }),
    },
    Target {
        id: "versus-spool",
        title: "aivtuber-gateway, the other build, embedded inbox, speech in a folder",
        kind: Kind::Gateway(Setup { inbox: true, spool: true, versus: true, ..GATEWAY }),
    },
];

/// The target of that name.
pub fn target(id: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.id == id)
}

/// Where targets live during a run.
pub struct Place {
    /// Open descriptors that a process may have.
    pub descriptors: u64,
    /// Configurations and output; removed at the end.
    pub dir: PathBuf,
    pub cores: Cores,
    /// The load generator's listening address.
    pub backend: SocketAddr,
    pub gateway: PathBuf,
    pub versus: Option<PathBuf>,
    pub floor: PathBuf,
    /// Under `dir`: the folder with the audio files.
    pub audio_root: PathBuf,
    /// What targets with TLS show.
    pub certificate: Certificate,
}

/// The names of the files under `Place::audio_root`: audio for throughput, audio of a megabyte, and
/// a page of a kilobyte.
pub const AUDIO: &str = "bench.wav";
pub const AUDIO_SMALL: &str = "small.wav";
pub const PAGE: &str = "page.html";

/// A started target.
pub struct Instance {
    pub target: &'static Target,
    pub address: SocketAddr,
    /// Where its results are published.
    pub publish_at: Option<SocketAddr>,
    /// PSS at rest after its start, in bytes.
    pub start_memory: u64,
    pub process: Process,
    /// The second process on that address.
    twin: Option<Process>,
    /// The addresses at which only the first and only the second process answer.
    own: Vec<SocketAddr>,
    /// Its own Redis; ended after it.
    pub redis: Option<Process>,
}

impl Target {
    /// The program's file, or why it cannot run here.
    pub fn program(&self, place: &Place) -> Result<PathBuf, Fault> {
        match self.kind {
            Kind::Pipe { .. } | Kind::Subscriber | Kind::Copy { .. } | Kind::Speech(_) => {
                found(place.floor.clone())
            }
            Kind::Uvicorn => installed("uvicorn"),
            Kind::Haproxy { .. } => installed("haproxy"),
            Kind::Nginx { .. } => installed("nginx"),
            Kind::Caddy => installed("caddy"),
            Kind::Gateway(Setup { versus: true, .. }) => {
                found(place.versus.clone().ok_or("--versus FILE names the other build")?)
            }
            Kind::Gateway(_) => found(place.gateway.clone()),
        }
    }

    /// The program's version text.
    pub fn version(&self, place: &Place) -> Option<String> {
        let (argument, word) = match self.kind {
            Kind::Haproxy { .. } => ("-v", "HAProxy version "),
            Kind::Nginx { .. } => ("-v", "nginx/"),
            Kind::Caddy => ("version", ""),
            Kind::Gateway(_) => ("--version", "aivtuber-gateway "),
            _ => return None,
        };
        let said = Command::new(self.program(place).ok()?).arg(argument).output().ok()?;
        let said = [said.stdout, said.stderr].concat();
        let line = String::from_utf8_lossy(&said).lines().next()?.to_owned();
        let from = line.find(word)? + word.len();
        Some(line[from..].split_whitespace().next()?.to_owned())
    }

    /// Whether its `/metrics` are read every second during a run.
    pub fn is_scraped(&self) -> bool {
        matches!(self.kind, Kind::Gateway(Setup { log: true, .. }))
    }

    /// Whether it reaches its backend over a Unix socket.
    pub fn dials_unix(&self) -> bool {
        self.door() == Door::Unix
    }

    fn door(&self) -> Door {
        match self.kind {
            Kind::Pipe { door, .. } | Kind::Haproxy { door, .. } | Kind::Nginx { door, .. } => door,
            Kind::Gateway(setup) => setup.door,
            _ => Door::Plain,
        }
    }

    /// Whether its clients use TLS.
    pub fn has_tls(&self) -> bool {
        self.door() == Door::Tls
    }

    /// Where its second process runs, if it has one.
    pub fn twin(&self) -> Option<Twin> {
        if let Kind::Gateway(setup) = self.kind { setup.twin } else { None }
    }

    /// Whether its clients see the results as they were published.
    pub fn copies_results(&self) -> bool {
        self.kind == Kind::Subscriber
    }

    /// Whether it takes speech, rather than relaying it.
    pub fn takes_speech(&self) -> bool {
        matches!(
            self.kind,
            Kind::Speech(_) | Kind::Uvicorn | Kind::Gateway(Setup { inbox: true, .. })
        )
    }

    /// Whether a client's message, or a plain request, makes it send the audio.
    pub fn is_copy_loop(&self) -> bool {
        matches!(self.kind, Kind::Copy { .. })
    }

    pub fn is_file_server(&self) -> bool {
        matches!(self.kind, Kind::Nginx { .. })
    }

    /// Starts it with what the row needs, and waits until it has come to rest.
    pub fn start(&'static self, place: &Place, need: Need) -> Result<Instance, Fault> {
        let address = local(free_port().map_err(|error| format!("no free port: {error}"))?);
        let has_inbox = matches!(self.kind, Kind::Gateway(Setup { inbox: true, .. }));
        let delivers =
            need != Need::Relay && matches!(self.kind, Kind::Gateway(_) | Kind::Subscriber);
        let redis = if delivers && !has_inbox { Some(start_redis(place)?) } else { None };
        let inbox = if has_inbox {
            Some(local(free_port().map_err(|error| error.to_string())?))
        } else {
            None
        };
        let publish_at = redis.as_ref().map(|(_, at)| *at).or(inbox.filter(|_| delivers));
        let output = |number: usize| place.dir.join(format!("{}.{number}.output", self.id));
        let command = || self.command(place, address, publish_at);
        let (process, twin, own) = match self.twin() {
            None => {
                (Process::start(command()?, place.cores, address, &output(1))?, None, vec![address])
            }
            Some(twin) => {
                // On the shared address either could answer, so each has a second address of its
                // own.
                let start = |cores: Cores, number: usize| -> Result<(Process, SocketAddr), Fault> {
                    let own = local(free_port().map_err(|error| format!("no free port: {error}"))?);
                    let mut command = command()?;
                    command.args(["--listen", &address.to_string(), "--listen", &own.to_string()]);
                    Ok((Process::start(command, cores, own, &output(number))?, own))
                };
                let (first, first_own) = start(place.cores, 1)?;
                let cores =
                    if twin == Twin::LoadCore { place.cores.beside_load() } else { place.cores };
                let (second, second_own) = start(cores, 2)?;
                (first, Some(second), vec![first_own, second_own])
            }
        };
        if let Some((_, at)) = &redis {
            await_subscription(*at)?;
        }
        let redis = redis.map(|(redis, _)| redis);
        let mut instance = Instance {
            target: self,
            address,
            publish_at,
            start_memory: 0,
            process,
            twin,
            own,
            redis,
        };
        instance.start_memory = instance.memory()?;
        Ok(instance)
    }

    /// The command that serves on `listen`, its configuration written.
    pub fn command(
        &self,
        place: &Place,
        listen: SocketAddr,
        publish_at: Option<SocketAddr>,
    ) -> Result<Command, Fault> {
        let mut command = Command::new(self.program(place)?);
        let write = |name: String, text: String| -> Result<PathBuf, Fault> {
            let path = place.dir.join(name);
            fs::write(&path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            Ok(path)
        };
        match self.kind {
            Kind::Pipe { splice, door } => {
                let backend = match door {
                    Door::Unix => format!("unix:{}", place.unix_backend().display()),
                    Door::Plain | Door::Http | Door::Tls => place.backend.to_string(),
                };
                command.args(["pipe", "--listen", &listen.to_string(), "--backend", &backend]);
                command.args(splice.then_some("--splice"));
            }
            Kind::Subscriber => {
                let redis = publish_at.ok_or("the bare subscriber needs a Redis")?;
                command.args([
                    "subscribe",
                    "--listen",
                    &listen.to_string(),
                    "--redis",
                    &redis.to_string(),
                ]);
                command.args(["--prefix", CHANNEL_PREFIX]);
            }
            Kind::Copy { buffer } => {
                command.args([
                    "copy",
                    "--listen",
                    &listen.to_string(),
                    "--buffer",
                    &buffer.to_string(),
                    "--file",
                ]);
                command.arg(place.audio_root.join(AUDIO));
            }
            Kind::Speech(store) => {
                command.args(["speech", "--listen", &listen.to_string()]);
                match store {
                    Store::Memory => {}
                    Store::Spool => drop(command.arg("--spool").arg(&place.dir)),
                    Store::Files => drop(command.arg("--files").arg(&place.audio_root)),
                }
            }
            Kind::Uvicorn => {
                write("ingest.py".to_owned(), include_str!("../../ingest.py").to_owned())?;
                command.args(["--host", "127.0.0.1", "--port", &listen.port().to_string()]);
                command.args(["--log-level", "warning", "--ws-max-size", "16777216"]);
                command.arg("--app-dir").arg(&place.dir).arg("ingest:app");
            }
            Kind::Haproxy { splice, buffers, door } => {
                let text = haproxy_configuration(place, listen, splice, buffers, door);
                command.args(["-db", "-f"]).arg(write(format!("{}.cfg", self.id), text)?);
            }
            Kind::Nginx { buffers, door } => {
                let text = nginx_configuration(self.id, place, listen, buffers, door);
                command.arg("-p").arg(&place.dir);
                command.arg("-c").arg(write(format!("{}.conf", self.id), text)?);
            }
            Kind::Caddy => {
                command.args(["run", "--adapter", "caddyfile", "--config"]);
                command.arg(write("Caddyfile".to_owned(), caddyfile(place, listen))?);
                command
                    .env("HOME", &place.dir)
                    .env("XDG_DATA_HOME", &place.dir)
                    .env("XDG_CONFIG_HOME", &place.dir);
            }
            Kind::Gateway(setup) => {
                let mut text = gateway_configuration(place, listen, publish_at, &setup);
                if setup.spool {
                    let folder = format!("[output]\nspool = \"{}\"\n", place.dir.display());
                    text = text.replace("[output]\n", &folder);
                }
                command.arg("--config").arg(write(format!("{}.toml", self.id), text)?);
                command.args(["--log-level", if setup.log { "info" } else { "warn" }]);
                for name in OVERRIDES {
                    command.env_remove(name);
                }
            }
        }
        Ok(command)
    }
}

impl Place {
    /// A place in a folder of its own under the system's temporary one, and the listener that plays
    /// the backend. The programs are looked for beside the one that runs.
    pub fn new(
        gateway: Option<PathBuf>,
        versus: Option<PathBuf>,
    ) -> Result<(Place, TcpListener), Fault> {
        let descriptors = net::raise_descriptor_limit();
        let cores = Cores::choose()?;
        let listener = net::listen(local(0)).map_err(|error| format!("cannot listen: {error}"))?;
        let backend = listener.local_addr().map_err(|error| error.to_string())?;
        let own = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
        let dir =
            std::env::temp_dir().join(format!("aivtuber-gateway-bench-{}", std::process::id()));
        let audio_root = dir.join("audio");
        fs::create_dir_all(&audio_root)
            .map_err(|error| format!("cannot make {}: {error}", audio_root.display()))?;
        let certificate = Certificate::write(&dir)?;
        let gateway = gateway.unwrap_or_else(|| own.with_file_name("aivtuber-gateway"));
        let floor = own.with_file_name("bench-floor");
        Ok((
            Place {
                descriptors,
                dir,
                cores,
                backend,
                gateway,
                versus,
                floor,
                audio_root,
                certificate,
            },
            listener,
        ))
    }

    /// The socket of the backend for targets that reach it without TCP.
    pub fn unix_backend(&self) -> PathBuf {
        self.dir.join("backend.sock")
    }

    /// Client connections that every target can be configured for: HAProxy needs up to five
    /// descriptors for two of them.
    fn connections_max(&self) -> u64 {
        (self.descriptors * 2 / 5).saturating_sub(100).min(60_000)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && self.dir.exists()
        {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}

impl Instance {
    /// The one process or two that serve on `address`: their ids, and where each of them alone
    /// answers.
    pub fn processes(&self) -> Vec<(u32, SocketAddr)> {
        let processes = std::iter::once(&self.process).chain(&self.twin);
        processes.map(Process::id).zip(self.own.iter().copied()).collect()
    }

    /// The target's processes and their children.
    pub fn family(&self) -> Vec<u32> {
        self.processes().into_iter().flat_map(|(id, _)| family(id)).collect()
    }

    /// PSS now, once it has come to rest, in bytes.
    pub fn memory(&self) -> Result<u64, Fault> {
        let family = self.family();
        rest(&family);
        memory(&family)
    }
}

fn haproxy_configuration(
    place: &Place,
    listen: SocketAddr,
    splice: bool,
    buffers: Option<u32>,
    door: Door,
) -> String {
    let connections = place.connections_max();
    let backend = match door {
        Door::Unix => place.unix_backend().display().to_string(),
        Door::Plain | Door::Http | Door::Tls => place.backend.to_string(),
    };
    let splice =
        if splice { "    option splice-request\n    option splice-response\n" } else { "" };
    let buffers = buffers.map_or(String::new(), |bytes| format!("    tune.bufsize {bytes}\n"));
    let secure = match door {
        Door::Tls => format!(" ssl crt {} alpn http/1.1", place.certificate.both.display()),
        Door::Plain | Door::Http | Door::Unix => String::new(),
    };
    format!(
        "global\n    nbthread 1\n    maxconn {connections}\n{buffers}\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n    \
         timeout tunnel 1h\n{splice}\
         frontend bench\n    bind {listen}{secure} backlog 4096\n    default_backend bench\n\
         backend bench\n    server bench {backend}\n"
    )
}

fn nginx_configuration(
    id: &str,
    place: &Place,
    listen: SocketAddr,
    buffers: Option<&str>,
    door: Door,
) -> String {
    let descriptors = place.descriptors;
    let backend = match door {
        Door::Unix => format!("unix:{}", place.unix_backend().display()),
        Door::Plain | Door::Http | Door::Tls => place.backend.to_string(),
    };
    let (dir, audio_root) = (place.dir.display(), place.audio_root.display());
    let buffers = buffers.map_or(String::new(), |size| {
        format!("proxy_buffer_size {size};\nproxy_buffers 4 {size};\n")
    });
    let (secure, keys) = match door {
        Door::Tls => {
            let Certificate { chain, key, .. } = &place.certificate;
            let (chain, key) = (chain.display(), key.display());
            let keys = format!("ssl_certificate {chain};\nssl_certificate_key {key};\n");
            (" ssl", format!("{keys}ssl_protocols TLSv1.2 TLSv1.3;\n"))
        }
        Door::Plain | Door::Http | Door::Unix => ("", String::new()),
    };
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    format!(
        "{user}daemon off;\nworker_processes 1;\nworker_rlimit_nofile {descriptors};\npid {dir}/{id}.pid;\n\
         error_log stderr error;\nevents {{ worker_connections {descriptors}; }}\nhttp {{\n\
         access_log off;\nsendfile on;\ntcp_nopush on;\nkeepalive_requests 1000000;\n\
         client_body_temp_path {dir}/{id}-body;\nproxy_temp_path {dir}/{id}-proxy;\n\
         fastcgi_temp_path {dir}/{id}-fastcgi;\nuwsgi_temp_path {dir}/{id}-uwsgi;\n\
         scgi_temp_path {dir}/{id}-scgi;\n\
         upstream relayed {{ server {backend}; }}\n\
         upstream api {{ server {backend}; keepalive 128; }}\nserver {{\nlisten {listen}{secure} backlog=4096;\n{keys}\
         location /audio/ {{ alias {audio_root}/; }}\n\
         location {FILES} {{ alias {audio_root}/; }}\n\
         location {API} {{\nproxy_pass http://api;\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nclient_max_body_size 0;\n\
         proxy_request_buffering off;\nproxy_max_temp_file_size 0;\n{buffers}}}\n\
         location /ws/ {{\nproxy_pass http://relayed;\nproxy_http_version 1.1;\n\
         proxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection \"upgrade\";\n\
         proxy_set_header Host $host;\nproxy_read_timeout 1h;\nproxy_send_timeout 1h;\n{buffers}}}\n}}\n}}\n"
    )
}

fn caddyfile(place: &Place, listen: SocketAddr) -> String {
    let (backend, port) = (place.backend, listen.port());
    format!(
        "{{\n\tadmin off\n\tauto_https off\n\tlog {{\n\t\tlevel ERROR\n\t}}\n}}\n\
         http://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\treverse_proxy {backend}\n}}\n"
    )
}

/// The relayed route, those that the row needs besides, and everything else as the gateway has it.
fn gateway_configuration(
    place: &Place,
    listen: SocketAddr,
    publish_at: Option<SocketAddr>,
    setup: &Setup,
) -> String {
    let shared = if setup.twin.is_some() { "reuse_port = true\n" } else { "" };
    let backend = match setup.door {
        Door::Unix => format!("ws+unix://{}:/ws/input", place.unix_backend().display()),
        Door::Plain | Door::Http | Door::Tls => format!("ws://{}/ws/input", place.backend),
    };
    let (scheme, keys) = match setup.door {
        Door::Tls => {
            let Certificate { chain, key, .. } = &place.certificate;
            let (chain, key) = (chain.display(), key.display());
            ("tls://", format!("[tls]\ncertificate = \"{chain}\"\nkey = \"{key}\"\n\n"))
        }
        Door::Plain | Door::Http | Door::Unix => ("", String::new()),
    };
    let mut relayed = format!(
        "[server]\nlisten = [\"{scheme}{listen}\"]\n{shared}max_connections = {}\n\n{keys}\
         [[route]]\nname = \"input\"\npath = \"/ws/input\"\nbackend = \"{backend}\"\n",
        place.connections_max()
    );
    if setup.door == Door::Http {
        let (backend, folder) = (place.backend, place.audio_root.display());
        relayed.push_str(&format!(
            "\n[[route]]\nname = \"api\"\npath = \"{API}{{rest...}}\"\nbackend = \"http://{backend}{API}{{rest}}\"\n\n\
             [[route]]\nname = \"files\"\npath = \"{FILES}{{file...}}\"\nfiles = \"{folder}\"\n"
        ));
    }
    let Some(publish_at) = publish_at else { return relayed };
    let scheme = if setup.inbox { "embedded" } else { "redis" };
    format!(
        "{relayed}\n[[route]]\nname = \"output\"\npath = \"/ws/output/{{task_id}}\"\nserve = \"output\"\n\n\
         [[route]]\nname = \"ingest\"\npath = \"/ws/ingest\"\nserve = \"ingest\"\n\n\
         [output]\naudio_root = \"{}\"\n\n[redis]\nurl = \"{scheme}://{publish_at}\"\n",
        place.audio_root.display()
    )
}

/// A Redis with nothing in it, beside the load generator.
fn start_redis(place: &Place) -> Result<(Process, SocketAddr), Fault> {
    let at = local(free_port().map_err(|error| format!("no free port: {error}"))?);
    let mut command = Command::new(installed("redis-server")?);
    command.args([
        "--port",
        &at.port().to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    command.args(["--loglevel", "warning", "--dir"]).arg(&place.dir);
    let process =
        Process::start(command, place.cores.beside_load(), at, &place.dir.join("redis.output"))?;
    Ok((process, at))
}

/// Waits until one client has subscribed to a pattern.
fn await_subscription(redis: SocketAddr) -> Result<(), Fault> {
    let broken = |error: std::io::Error| format!("Redis: {error}");
    let start = Instant::now();
    let mut stream = TcpStream::connect(redis).map_err(broken)?;
    let mut command = Vec::new();
    resp::push_command(&mut command, &[b"PUBSUB", b"NUMPAT"]);
    loop {
        stream.write_all(&command).map_err(broken)?;
        let mut answer = [0; 64];
        let count = stream.read(&mut answer).map_err(broken)?;
        match resp::parse(&answer[..count])? {
            Some((Value::Integer(1..), _)) => return Ok(()),
            Some((Value::Integer(_), _)) if start.elapsed() < SUBSCRIBE_PATIENCE => {}
            other => {
                return Err(format!(
                    "no subscriber within {} s: {other:?}",
                    SUBSCRIBE_PATIENCE.as_secs()
                ));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn found(path: PathBuf) -> Result<PathBuf, Fault> {
    if path.is_file() { Ok(path) } else { Err(format!("{} is not there", path.display())) }
}

/// Looks a program up where Debian puts them.
pub fn installed(name: &str) -> Result<PathBuf, Fault> {
    let places = std::env::var("PATH").unwrap_or_default();
    let places = places.split(':').map(str::to_owned).chain([
        "/usr/sbin".into(),
        "/usr/bin".into(),
        "/sbin".into(),
    ]);
    let found = places.map(|place| Path::new(&place).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn place(dir: &Path) -> Place {
        Place {
            dir: dir.to_owned(),
            descriptors: 20_000,
            cores: Cores { target: 0, load: 1 },
            backend: local(2),
            gateway: "/bin/true".into(),
            versus: None,
            floor: "/bin/true".into(),
            audio_root: dir.join("audio"),
            certificate: Certificate::write(&std::env::temp_dir()).unwrap(),
        }
    }

    #[test]
    fn names_of_targets_are_unique() {
        let names: HashSet<_> = TARGETS.iter().map(|target| target.id).collect();
        assert_eq!(names.len(), TARGETS.len());
        assert!(target("gateway").is_some() && target("nothing").is_none());
    }

    #[test]
    fn the_gateway_is_told_of_results_only_where_they_are_published() {
        let place = place(Path::new("/nowhere"));
        let relay = gateway_configuration(&place, local(1), None, &GATEWAY);
        assert!(
            relay.contains("listen = [\"127.0.0.1:1\"]")
                && relay.contains("ws://127.0.0.1:2/ws/input")
        );
        assert!(!relay.contains("output") && !relay.contains("redis"));
        let redis = gateway_configuration(&place, local(1), Some(local(3)), &GATEWAY);
        assert!(
            redis.contains("serve = \"output\"") && redis.contains("url = \"redis://127.0.0.1:3\"")
        );
        assert!(
            gateway_configuration(
                &place,
                local(1),
                Some(local(3)),
                &Setup { inbox: true, ..GATEWAY }
            )
            .contains("embedded://127.0.0.1:3")
        );
    }

    #[test]
    fn two_processes_share_their_address_and_one_does_not() {
        let place = place(Path::new("/nowhere"));
        assert!(
            gateway_configuration(
                &place,
                local(1),
                None,
                &Setup { twin: Some(Twin::LoadCore), ..GATEWAY }
            )
            .contains("\nreuse_port = true\n")
        );
        assert!(!gateway_configuration(&place, local(1), None, &GATEWAY).contains("reuse_port"));
        let two: Vec<_> = TARGETS
            .iter()
            .filter(|target| target.twin().is_some())
            .map(|target| target.id)
            .collect();
        assert_eq!(two, ["gateway-two", "gateway-two-here"]);
    }

    #[test]
    fn a_missing_program_is_named() {
        assert_eq!(
            installed("no-such-program-here").unwrap_err(),
            "no-such-program-here is not installed"
        );
        let mut place = place(Path::new("/nowhere"));
        place.gateway = "/nowhere/gateway".into();
        let fault = target("gateway").unwrap().program(&place).unwrap_err();
        assert_eq!(fault, "/nowhere/gateway is not there");
    }
}
