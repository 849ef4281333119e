//! The session roster for the next broker, as a table and as text: sessions with subscriptions whose clients reconnect.
//!
//! The text is a header with the identity of the system's boot, then lines in the order of the events:
//!
//! ```text
//! lapce-ipc sessions 1 BOOT
//! + UID PID START INSTANCE     a session has its first subscription
//! - UID PID INSTANCE           a session has ended
//! ```
//!
//! Numbers are decimal. A client may have two sessions for a moment, so the table counts them.

use std::collections::HashMap;
use std::fmt::Write;

/// The limit of listed sessions.
pub(crate) const SESSIONS_MAX: usize = 4096;
/// The limit of bytes that are read. The lines of [`SESSIONS_MAX`] sessions and of as many events take half of it.
pub(crate) const TEXT_MAX: usize = 1 << 20;
const HEADER: &str = "lapce-ipc sessions 1 ";

/// One instance of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientKey {
    pub(crate) uid: u32,
    /// 0: unknown.
    pub(crate) pid: u32,
    pub(crate) instance: u32,
}

/// A public id from a client's nonce: half of its bits, folded, so that the nonce cannot be derived from it. The id of
/// the connection follows from it.
pub(crate) fn instance(nonce: u64) -> u32 {
    (nonce ^ (nonce >> 32)) as u32 & 0x7fff_ffff
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RosterTable {
    /// The start time of the process in the kernel's clock ticks (0: unknown), and the number of sessions.
    sessions: HashMap<ClientKey, (u64, u32)>,
}

/// Why a text is not a roster of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    /// The header is another.
    #[error("not a roster of sessions")]
    Header,
    /// It was written before the last boot, so its processes have ended.
    #[error("written before the last boot of the system")]
    OtherBoot,
}

impl RosterTable {
    /// Parses a text. Returns the table and the number of invalid lines.
    ///
    /// # Errors
    ///
    /// If the header is invalid or of another boot.
    pub(crate) fn parse(text: &[u8], boot: &str) -> Result<(RosterTable, usize), TextError> {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let header = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let header = header.and_then(|line| line.strip_prefix(HEADER)?.strip_suffix('\n')).ok_or(TextError::Header)?;
        if header != boot {
            return Err(TextError::OtherBoot);
        }
        let (mut listed, mut bad) = (RosterTable::default(), 0);
        for line in lines {
            let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
            bad += usize::from(line.and_then(|line| listed.apply(line)).is_none());
        }
        Ok((listed, bad))
    }

    fn apply(&mut self, line: &str) -> Option<()> {
        let mut fields = line.split(' ');
        let sign = fields.next()?;
        let numbers: Vec<u64> = fields.map(number).collect::<Option<_>>()?;
        let client = |uid: u64, pid: u64, instance: u64| {
            let small = |n: u64| u32::try_from(n).ok();
            Some(ClientKey { uid: small(uid)?, pid: small(pid)?, instance: small(instance)? })
        };
        match (sign, &numbers[..]) {
            ("+", &[uid, pid, start, instance]) => self.add(client(uid, pid, instance)?, start).then_some(()),
            ("-", &[uid, pid, instance]) => self.strike(&client(uid, pid, instance)?).then_some(()),
            _ => None,
        }
    }

    /// Adds a session. `false`: the limit is reached.
    pub(crate) fn add(&mut self, client: ClientKey, start: u64) -> bool {
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&client) {
            return false;
        }
        let (known, count) = self.sessions.entry(client).or_insert((start, 0));
        (*known, *count) = (start, count.saturating_add(1));
        true
    }

    /// Removes a session. `false`: it is not listed.
    pub(crate) fn strike(&mut self, client: &ClientKey) -> bool {
        let Some((_, count)) = self.sessions.get_mut(client) else { return false };
        *count -= 1;
        if *count == 0 {
            self.sessions.remove(client);
        }
        true
    }

    /// Each client once.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (ClientKey, u64)> + '_ {
        self.sessions.iter().map(|(client, (start, _))| (*client, *start))
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The whole table as text.
    pub(crate) fn text(&self, boot: &str) -> String {
        let mut text = format!("{HEADER}{boot}\n");
        for (client, (start, count)) in &self.sessions {
            (0..*count).for_each(|_| text.push_str(&begin_line(client, *start)));
        }
        text
    }
}

/// The line of a session that has begun.
pub(crate) fn begin_line(client: &ClientKey, start: u64) -> String {
    let ClientKey { uid, pid, instance } = client;
    line(format_args!("+ {uid} {pid} {start} {instance}"))
}

/// The line of a session that has ended.
pub(crate) fn end_line(client: &ClientKey) -> String {
    let ClientKey { uid, pid, instance } = client;
    line(format_args!("- {uid} {pid} {instance}"))
}

fn line(text: std::fmt::Arguments<'_>) -> String {
    let mut line = String::with_capacity(64);
    let _ = writeln!(line, "{text}");
    line
}

/// A decimal number without leading zeros or sign.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: &str = "b007";

    fn client(pid: u32) -> ClientKey {
        ClientKey { uid: 1000, pid, instance: 7 }
    }

    fn parsed(lines: &str) -> (RosterTable, usize) {
        RosterTable::parse(format!("{HEADER}{BOOT}\n{lines}").as_bytes(), BOOT).unwrap()
    }

    #[test]
    fn a_session_is_listed_until_it_has_ended() {
        let lines = [begin_line(&client(1), 11), begin_line(&client(2), 22), end_line(&client(1))].concat();
        let (listed, bad) = parsed(&lines);
        assert_eq!((listed.clients().collect::<Vec<_>>(), bad), (vec![(client(2), 22)], 0));
        assert_eq!(RosterTable::parse(listed.text(BOOT).as_bytes(), BOOT), Ok((listed, 0)));
    }

    #[test]
    fn of_two_sessions_of_one_client_the_end_of_one_leaves_the_other() {
        let (mut listed, _) =
            parsed(&[begin_line(&client(1), 11), begin_line(&client(1), 11), end_line(&client(1))].concat());
        assert_eq!(listed.len(), 1);
        assert!(listed.strike(&client(1)) && !listed.strike(&client(1)));
        assert_eq!(listed, RosterTable::default());
    }

    #[test]
    fn bad_lines_are_left_out_and_counted() {
        let good = begin_line(&client(1), 11);
        for bad in [
            "",
            "+",
            "+ 1 2 3",
            "+ 1 2 3 4 5",
            "- 1 2 3 4",
            "+ -1 2 3 4",
            "+ 01 2 3 4",
            "+ 1 2 3 4294967296",
            "+ 1 2 99999999999999999999 4",
            "+  1 2 3 4",
            "- 1 2 3",
            "* 1 2 3 4",
            "\u{1b}[31m",
        ] {
            let (listed, count) = parsed(&format!("{bad}\n{good}"));
            assert_eq!((listed.len(), count), (1, 1), "{bad:?}");
        }
        assert_eq!(parsed(good.trim_end()), (RosterTable::default(), 1), "a line that was cut off");
    }

    #[test]
    fn another_kind_of_text_and_another_boot_are_refused() {
        for text in ["", "garbage", HEADER, "lapce-ipc sessions 2 b007\n", "lapce-ipc sessions 1 b007"] {
            assert_eq!(RosterTable::parse(text.as_bytes(), BOOT), Err(TextError::Header), "{text:?}");
        }
        let text = format!("{HEADER}other\n{}", begin_line(&client(1), 11));
        assert_eq!(RosterTable::parse(text.as_bytes(), BOOT), Err(TextError::OtherBoot));
    }

    #[test]
    fn a_full_table_takes_no_other_and_its_text_fits() {
        let mut listed = RosterTable::default();
        for pid in 0..SESSIONS_MAX as u32 {
            assert!(listed.add(ClientKey { uid: u32::MAX, pid: u32::MAX - pid, instance: 0x7fff_ffff }, u64::MAX));
        }
        assert!(!listed.add(client(1), 1));
        assert!(listed.text(BOOT).len() * 2 < TEXT_MAX);
    }

    #[test]
    fn the_instance_does_not_lead_back_to_the_nonce() {
        assert_eq!(instance(0x1234_5678_9abc_def0), (0x1234_5678 ^ 0x9abc_def0) & 0x7fff_ffff);
        assert_eq!(instance(0x1234_5678_0000_0000), instance(0x1234_5678));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), headed: bool) {
            let mut text = if headed { format!("{HEADER}{BOOT}\n").into_bytes() } else { Vec::new() };
            text.extend(bytes);
            if let Ok((listed, _)) = RosterTable::parse(&text, BOOT) {
                prop_assert_eq!(RosterTable::parse(listed.text(BOOT).as_bytes(), BOOT), Ok((listed, 0)));
            }
        }

        #[test]
        fn the_text_of_the_events_is_the_table(events in prop::collection::vec((any::<bool>(), 0..4u32), 0..40)) {
            let (mut listed, mut text) = (RosterTable::default(), RosterTable::default().text(BOOT));
            for (begins, pid) in events {
                if begins {
                    prop_assert!(listed.add(client(pid), u64::from(pid)));
                    text += &begin_line(&client(pid), u64::from(pid));
                } else if listed.strike(&client(pid)) {
                    text += &end_line(&client(pid));
                }
            }
            prop_assert_eq!(RosterTable::parse(text.as_bytes(), BOOT), Ok((listed, 0)));
        }
    }
}
