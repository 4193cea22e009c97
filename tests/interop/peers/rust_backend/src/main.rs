//! `/echo` of `http_backend.js`, on hyper: reports the request as hyper has parsed it.

use std::convert::Infallible;

use data_encoding::HEXLOWER;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve())
}

async fn serve() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("port {}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
            if let Err(error) = connection.await {
                println!("connection failed: {error}");
            }
        });
    }
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::default();
    if request.uri().path() != "/echo" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    match echo(request).await {
        Ok(seen) => {
            response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
            *response.body_mut() = Full::from(seen);
        }
        Err(error) => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            *response.body_mut() = Full::from(error.to_string());
        }
    }
    Ok(response)
}

async fn echo(request: Request<Incoming>) -> Result<String, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let (mut digest, mut length, mut trailers) = (Sha256::new(), 0, Vec::new());
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                digest.update(&data);
                length += data.len();
            }
            Err(frame) => trailers = frame.trailers_ref().map(pairs).unwrap_or_default(),
        }
    }
    let seen = json!({
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": pairs(&head.headers),
        "version": format!("{:?}", head.version),
        "length": length,
        "sha256": HEXLOWER.encode(&digest.finalize()),
        "trailers": trailers,
    });
    Ok(seen.to_string())
}

/// Names and values in turn, each byte as one character.
fn pairs(headers: &HeaderMap) -> Vec<String> {
    headers
        .iter()
        .flat_map(|(name, value)| {
            [name.as_str().to_owned(), value.as_bytes().iter().copied().map(char::from).collect()]
        })
        .collect()
}
