//! TCP connections over one serial line: the frames.

/// What goes over the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The guest's side is there.
    Hello,
    /// A new connection, to this port of the other side.
    Open {
        /// Number of the connection, chosen by the side that opens.
        connection: u16,
        /// Port to connect to.
        port: u16,
    },
    /// Bytes of a connection, at most [`LARGEST`].
    Data {
        /// Number of the connection.
        connection: u16,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The sender will send no more on this connection.
    Close {
        /// Number of the connection.
        connection: u16,
    },
}

/// Bytes of data in a frame at most.
pub const LARGEST: usize = 4096;
const HEADER: usize = 5;

impl Frame {
    /// The frame's bytes: kind, connection, length of what follows.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, connection, content): (u8, u16, &[u8]) = match self {
            Self::Hello => (b'H', 0, &[]),
            Self::Open { connection, port } => (b'O', *connection, &port.to_le_bytes()),
            Self::Data { connection, bytes } => (b'D', *connection, bytes),
            Self::Close { connection } => (b'C', *connection, &[]),
        };
        // LARGEST fits.
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
        let mut frame = vec![kind];
        frame.extend(connection.to_le_bytes());
        frame.extend(length.to_le_bytes());
        frame.extend(&content[..usize::from(length)]);
        frame
    }
}

/// Puts frames together again.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

/// The line carried something that is no frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbled;

impl Decoder {
    /// The frames that `bytes` completes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Garbled> {
        self.pending.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut rest = self.pending.as_slice();
        while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
            let [kind, low, high, length_low, length_high] = *header;
            let connection = u16::from_le_bytes([low, high]);
            let length = usize::from(u16::from_le_bytes([length_low, length_high]));
            // Before waiting for as much as it claims.
            if !b"HODC".contains(&kind) || length > LARGEST {
                return Err(Garbled);
            }
            let Some((content, after)) = after.split_at_checked(length) else {
                break;
            };
            frames.push(match (kind, content) {
                (b'H', []) => Frame::Hello,
                (b'O', [low, high]) => Frame::Open {
                    connection,
                    port: u16::from_le_bytes([*low, *high]),
                },
                (b'D', bytes) => Frame::Data {
                    connection,
                    bytes: bytes.to_vec(),
                },
                (b'C', []) => Frame::Close { connection },
                _ => return Err(Garbled),
            });
            rest = after;
        }
        self.pending = rest.to_vec();
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames = [
            Frame::Hello,
            Frame::Open {
                connection: 513,
                port: 9955,
            },
            Frame::Data {
                connection: 513,
                bytes: (0..=255).collect(),
            },
            Frame::Data {
                connection: 1,
                bytes: vec![9; LARGEST],
            },
            Frame::Close { connection: 513 },
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for piece in [1, 2, 3, 7, 64, bytes.len()] {
            let mut decoder = Decoder::default();
            let received: Vec<_> = bytes
                .chunks(piece)
                .flat_map(|bytes| decoder.feed(bytes).unwrap())
                .collect();
            assert_eq!(received, frames, "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(Decoder::default().feed(b"Linux version"), Err(Garbled));
    }
}
