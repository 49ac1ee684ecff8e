//! One GET, for `sdtrace dump`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Gets `url`, which must begin with `http://`.
///
/// # Errors
/// If the URL cannot be used, nobody listens there, or the answer takes longer than `patience`.
pub async fn get(url: &str, patience: Duration) -> Result<Answer> {
    tokio::time::timeout(patience, get_patiently(url))
        .await
        .with_context(|| format!("{url} does not answer within {} s", patience.as_secs()))?
}

async fn get_patiently(url: &str) -> Result<Answer> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    if uri.scheme_str() != Some("http") {
        bail!("{url}: only http:// is spoken here");
    }
    let authority = uri
        .authority()
        .with_context(|| format!("{url} names no host"))?
        .clone();
    let address = (
        authority.host().trim_matches(['[', ']']).to_owned(),
        authority.port_u16().unwrap_or(80),
    );
    let stream = TcpStream::connect(&address)
        .await
        .with_context(|| format!("cannot connect to {authority}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .body(Empty::<Bytes>::new())?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("{url} does not speak HTTP"))?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .with_context(|| format!("{url} broke off"))?;
    driver.abort();
    Ok(Answer {
        status,
        body: body.to_bytes().to_vec(),
    })
}
