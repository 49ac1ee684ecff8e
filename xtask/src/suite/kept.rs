//! A connection to sdtrace that is kept: it is answered there even when no other can be accepted.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::daemon::Answer;

/// An open connection.
#[derive(Debug)]
pub struct Kept(BufReader<TcpStream>);

impl Kept {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn to(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks for a path whose answer tells its length.
    ///
    /// # Errors
    /// If there is no such answer.
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: sdtrace\r\n\r\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("the answer begins with {line:?}"))?;
        let mut length = None;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.context("the answer has no length")?];
        self.0.read_exact(&mut body)?;
        Ok(Answer {
            status,
            body: String::from_utf8(body)?,
        })
    }
}
