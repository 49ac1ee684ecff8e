//! TCP connections over one serial line: for kernels whose network modules Debian no longer has.
//!
//! The host listens and opens; the guest's side connects to its own loopback. What arrives over the line is taken off at
//! once and queued per connection: a full serial buffer in the guest would drop bytes.

use super::frames::{Decoder, Frame, LARGEST};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// One end of the line.
struct Line {
    out: Mutex<Box<dyn Write + Send>>,
    connections: Mutex<HashMap<u16, Sender<Vec<u8>>>>,
    closed: AtomicBool,
    next: AtomicU16,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    fn new(out: impl Write + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            out: Mutex::new(Box::new(out)),
            connections: Mutex::default(),
            closed: AtomicBool::new(false),
            next: AtomicU16::new(0),
        })
    }

    fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut out = lock(&self.out);
        out.write_all(&frame.encode())?;
        out.flush()
    }

    /// Registers a connection before its stream is there, so that its data finds a queue.
    fn register(&self, connection: u16) -> Receiver<Vec<u8>> {
        let (sender, receiver) = channel();
        lock(&self.connections).insert(connection, sender);
        receiver
    }

    /// Carries a connection's bytes both ways until both are over.
    fn carry(self: &Arc<Self>, connection: u16, stream: TcpStream, queue: Receiver<Vec<u8>>) {
        let line = Arc::clone(self);
        let Ok(mut reading) = stream.try_clone() else {
            return self.refuse(connection);
        };
        spawn(move || {
            let mut buffer = [0; LARGEST];
            while let Ok(length @ 1..) = reading.read(&mut buffer) {
                if line
                    .send(&Frame::Data {
                        connection,
                        bytes: buffer[..length].to_vec(),
                    })
                    .is_err()
                {
                    return;
                }
            }
            // If the line is gone too, there is nobody left to tell.
            let _ = line.send(&Frame::Close { connection });
        });
        spawn(move || {
            let mut writing = stream;
            for bytes in queue {
                if writing.write_all(&bytes).is_err() {
                    let _ = writing.shutdown(Shutdown::Both);
                    return;
                }
            }
            // The other side will send no more.
            let _ = writing.shutdown(Shutdown::Write);
        });
    }

    fn refuse(&self, connection: u16) {
        lock(&self.connections).remove(&connection);
        let _ = self.send(&Frame::Close { connection });
    }

    /// Takes frames off the line until it ends. `special` handles what only one side gets.
    fn pump(
        self: &Arc<Self>,
        mut line: impl Read,
        mut special: impl FnMut(&Arc<Self>, Frame),
    ) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut buffer = [0; LARGEST];
        let result = loop {
            let length = match line.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(error),
            };
            let Ok(frames) = decoder.feed(&buffer[..length]) else {
                break Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the serial line carried no frame",
                ));
            };
            for frame in frames {
                match frame {
                    Frame::Data { connection, bytes } => {
                        if let Some(queue) = lock(&self.connections).get(&connection) {
                            // The writer may have gone with its connection: then nobody wants the bytes.
                            let _ = queue.send(bytes);
                        }
                    }
                    // Dropping the queue's sender lets the writer finish.
                    Frame::Close { connection } => drop(lock(&self.connections).remove(&connection)),
                    other => special(self, other),
                }
            }
        };
        self.closed.store(true, Ordering::SeqCst);
        lock(&self.connections).clear();
        result
    }
}

/// The host's side: listens on `listeners` (each with the guest's port) as soon as the guest's side says hello, and until
/// the line ends.
pub fn host(
    reading: impl Read,
    writing: impl Write + Send + 'static,
    listeners: Vec<(TcpListener, u16)>,
) -> io::Result<()> {
    let line = Line::new(writing);
    let mut unopened = listeners;
    line.pump(reading, |line, frame| {
        if frame == Frame::Hello {
            for (listener, port) in unopened.drain(..) {
                let line = Arc::clone(line);
                spawn(move || accept(&line, &listener, port));
            }
        }
    })
}

fn accept(line: &Arc<Line>, listener: &TcpListener, port: u16) {
    // Blocking would keep the port after the guest's end.
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !line.closed.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            sleep(Duration::from_millis(10));
            continue;
        };
        if stream.set_nonblocking(false).is_err() {
            continue;
        }
        let connection = line.next.fetch_add(1, Ordering::SeqCst);
        let queue = line.register(connection);
        if line.send(&Frame::Open { connection, port }).is_ok() {
            line.carry(connection, stream, queue);
        }
    }
}

/// The guest's side: says hello, then connects to its own loopback as asked, until the line ends.
pub fn guest(reading: impl Read, writing: impl Write + Send + 'static) -> io::Result<()> {
    let line = Line::new(writing);
    line.send(&Frame::Hello)?;
    line.pump(reading, |line, frame| {
        let Frame::Open { connection, port } = frame else {
            return;
        };
        let queue = line.register(connection);
        let line = Arc::clone(line);
        spawn(move || match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => line.carry(connection, stream, queue),
            Err(_) => line.refuse(connection),
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// Both sides over a socket pair; returns the host's port and the end that closes the line.
    fn forwarded(target: u16) -> (u16, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (reading, writing) = (near.try_clone().unwrap(), near.try_clone().unwrap());
        spawn(move || host(reading, writing, vec![(listener, target)]));
        spawn(move || guest(far.try_clone().unwrap(), far));
        (port, near)
    }

    /// A server that answers a request that ends by half-close with the request reversed.
    fn reversing_server() -> u16 {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.unwrap();
                spawn(move || {
                    let mut request = Vec::new();
                    stream.read_to_end(&mut request).unwrap();
                    request.reverse();
                    stream.write_all(&request).unwrap();
                });
            }
        });
        port
    }

    fn ask(port: u16, request: &[u8]) -> Vec<u8> {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        answer
    }

    #[test]
    fn many_connections_at_once_arrive_whole() {
        let (port, _line) = forwarded(reversing_server());
        let clients: Vec<_> = (1_u32..9)
            .map(|seed| {
                spawn(move || {
                    let request: Vec<u8> = (0..seed * 20_000)
                        .map(|at| at.wrapping_mul(seed).to_le_bytes()[1])
                        .collect();
                    let mut expected = request.clone();
                    expected.reverse();
                    assert!(ask(port, &request) == expected, "connection {seed}");
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    }

    #[test]
    fn a_refused_connection_is_closed() {
        let unused = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let (port, _line) = forwarded(unused);
        assert_eq!(ask(port, b"hello"), b"");
    }

    #[test]
    fn the_port_is_free_again_when_the_line_ends() {
        let (port, line) = forwarded(reversing_server());
        assert_eq!(ask(port, b"ab"), b"ba");
        line.shutdown(Shutdown::Both).unwrap();
        let freed = (0..200).any(|_| {
            sleep(Duration::from_millis(10));
            TcpStream::connect(("127.0.0.1", port)).is_err()
        });
        assert!(freed);
    }
}
