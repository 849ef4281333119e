//! What a client can do at random: numbers of a seed, and steps of a raw client that are nearly right, or nonsense.

#![allow(dead_code, reason = "each test program uses its part")]

use super::raw::{self, Lane, Raw, forged, word};
use lapce_ipc::client::DeliveryPolicy;
use lapce_ipc::wire::record::HEADER_WORDS;
use lapce_ipc::wire::{ClientFrame, Pattern};
use rustix::net::SendFlags;
use std::os::unix::fs::FileExt;

/// A generator whose numbers are the same for the same seed, which is not 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 11) % most
    }

    /// A number of the kind that is at an edge somewhere.
    pub(crate) fn edge(&mut self) -> u64 {
        const EDGES: [u64; 12] =
            [0, 1, 2, 8, 9, 1024, 4096, 10_485_760, u32::MAX as u64, u32::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
        match self.below(4) {
            0 => self.next(),
            _ => EDGES[self.below(EDGES.len() as u64) as usize],
        }
    }
}

/// A random step of a client that has a topic, the service `echo` and a subscription.
pub(crate) fn mutate(raw: &mut Raw, random: &mut Random) {
    const KINDS: [u8; 12] = [1, 1, 2, 8, 8, 9, 10, 11, 12, 13, 34, 43];
    let lane = if random.below(2) == 0 { Lane::Bulk } else { Lane::Express };
    match random.below(8) {
        // A record that is nearly right: of a kind of its lane, with small numbers.
        0..=2 => {
            let kind = KINDS[random.below(KINDS.len() as u64) as usize];
            let lane = if kind < 8 { Lane::Bulk } else { Lane::Express };
            let len = random.below(300);
            let flags = random.below(32);
            let mut header = [0; HEADER_WORDS];
            header[0] = len | u64::from(kind) << 32 | flags << 40;
            header[1] = random.below(3) | random.below(2) << 32;
            header[2] = if random.below(2) == 0 { len } else { random.below(600) } | random.below(2) << 32;
            header[3] = random.below(4) | random.below(2) << 32;
            let hit = random.below(10) as usize;
            if let Some(word) = header.get_mut(hit) {
                *word ^= 1 << random.below(64);
            }
            raw.try_place(lane, &header, &vec![0x5a; len as usize]);
        }
        // Anything.
        3 => {
            let header = std::array::from_fn(|_| random.edge());
            raw.try_place(lane, &header, &[]);
        }
        // A tag that is not, or not yet, the next, anywhere.
        4 => {
            let nonce = if lane == Lane::Bulk { raw.geometry.nonce_bulk } else { raw.geometry.nonce_express };
            let tag = nonce.wrapping_add(random.below(64)).wrapping_sub(random.below(4));
            let at = random.below(raw.geometry.segment_bytes / raw::CELL / 64) * raw::CELL;
            raw.write_record(at, tag, &forged(random.below(45) as u8, random.edge() as u32), &[]);
            raw.ring();
        }
        // Any of the words that both sides use.
        5 => {
            let (at, value) = (random.below(word::END), random.edge());
            raw.set_word(at, value);
            raw.ring();
        }
        // A frame with a bit of it turned round.
        6 => {
            let mut bytes = frame(random);
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            send(raw, &bytes);
        }
        // Noise over everything that is there.
        _ => {
            raw.segment.write_all_at(&noise(random, 512), random.below(3584)).expect("the segment");
            raw.ring();
        }
    }
}

/// A frame that is right.
fn frame(random: &mut Random) -> Vec<u8> {
    let pattern = Pattern::parse("bad.*").expect("a pattern");
    let frames = [
        ClientFrame::Status { serial: 1 },
        ClientFrame::Unserve { serial: 2, service: 0 },
        ClientFrame::Subscribe { serial: 3, pattern, policy: DeliveryPolicy::DropOldest, credit: 1 },
        ClientFrame::Unsubscribe { serial: 4, subscription: 1 },
    ];
    frames[random.below(4) as usize].encode().expect("a frame")
}

/// Steps of a worse kind: floods, whole pages, and bytes of any kind on the control socket.
pub(crate) fn rage(raw: &mut Raw, random: &mut Random) {
    match random.below(8) {
        0 => {
            let len = random.below(64) as usize + 1;
            send(raw, &noise(random, len));
        }
        // A frame that announces more than comes.
        1 => send(raw, &(random.edge() as u32).to_le_bytes()),
        // Many frames whose replies it does not read.
        2 => {
            let frames: Vec<u8> = (0..random.below(200)).flat_map(|_| frame(random)).collect();
            send(raw, &frames);
        }
        3 => (0..random.below(3000)).for_each(|_| raw.ring()),
        // A page of its segment that is not lent to it, mostly.
        4 => {
            let page = random.below(raw.geometry.segment_bytes / 4096) * 4096;
            raw.segment.write_all_at(&noise(random, 4096), page).expect("the segment");
        }
        5 => {
            raw.discard();
        }
        // It says that it has taken more, or less.
        6 => {
            let taken = raw.word(word::EGRESS_CONSUMED);
            raw.set_word(word::EGRESS_CONSUMED, taken.wrapping_add(random.below(40)).wrapping_sub(2));
            raw.ring();
        }
        // A run of records, as fast as the lane takes them.
        _ => {
            let lane = if random.below(2) == 0 { Lane::Bulk } else { Lane::Express };
            let kind = if lane == Lane::Bulk { 1 } else { 8 };
            let len = random.below(900);
            for number in 1..random.below(50) {
                let header = [len | kind << 32 | 3 << 40, number << 32, len, number, 0, 0, 0];
                raw.try_place(lane, &header, &vec![0xa5; len as usize]);
            }
        }
    }
}

/// Whole words.
fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Sends what the socket takes now: the broker may have closed, or wait for this client to read.
fn send(raw: &Raw, bytes: &[u8]) {
    let _ = rustix::net::send(&raw.control.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
