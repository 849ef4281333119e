//! The sessions with subscriptions whose clients reconnect, as a table and as text: what a broker leaves to the next.
//!
//! The text is a header with the identity of the system's boot, then lines in the order of the events:
//!
//! ```text
//! lapce-ipc sessions 1 BOOT
//! + UID PID START INSTANCE     a session has its first subscription
//! - UID PID INSTANCE           a session has ended
//! ```
//!
//! Numbers are decimal. A client may have two sessions for a moment, so the table counts.

use std::collections::HashMap;
use std::fmt::Write;

/// The most sessions that are listed.
pub(crate) const MOST: usize = 4096;
/// The longest text that is read, in bytes: the lines of [`MOST`] sessions and of as many events take half of it.
pub(crate) const TEXT_MAX: usize = 1 << 20;
const HEADER: &str = "lapce-ipc sessions 1 ";

/// One instance of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Who {
    pub(crate) uid: u32,
    /// 0: unknown.
    pub(crate) pid: u32,
    pub(crate) instance: u32,
}

/// What is shown of a client's nonce: half of its bits, folded, so that it does not lead back to the nonce. The
/// connection has its id by it.
pub(crate) fn instance(nonce: u64) -> u32 {
    (nonce ^ (nonce >> 32)) as u32 & 0x7fff_ffff
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    /// When the process started, by the system's count; 0: unknown. And how many sessions there are.
    sessions: HashMap<Who, (u64, u32)>,
}

/// Why a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    /// It begins with something else.
    #[error("not a roster of sessions")]
    Header,
    /// Its processes ended with the system.
    #[error("from before the system's last start")]
    OtherBoot,
}

impl Listed {
    /// Reads a text, and how many of its lines are none.
    ///
    /// # Errors
    ///
    /// If nothing of it holds.
    pub(crate) fn parse(text: &[u8], boot: &str) -> Result<(Listed, usize), TextError> {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let header = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let header = header.and_then(|line| line.strip_prefix(HEADER)?.strip_suffix('\n')).ok_or(TextError::Header)?;
        if header != boot {
            return Err(TextError::OtherBoot);
        }
        let (mut listed, mut bad) = (Listed::default(), 0);
        for line in lines {
            let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
            bad += usize::from(line.and_then(|line| listed.heed(line)).is_none());
        }
        Ok((listed, bad))
    }

    fn heed(&mut self, line: &str) -> Option<()> {
        let mut fields = line.split(' ');
        let sign = fields.next()?;
        let numbers: Vec<u64> = fields.map(number).collect::<Option<_>>()?;
        let who = |uid: u64, pid: u64, instance: u64| {
            let small = |n: u64| u32::try_from(n).ok();
            Some(Who { uid: small(uid)?, pid: small(pid)?, instance: small(instance)? })
        };
        match (sign, &numbers[..]) {
            ("+", &[uid, pid, start, instance]) => self.add(who(uid, pid, instance)?, start).then_some(()),
            ("-", &[uid, pid, instance]) => self.strike(&who(uid, pid, instance)?).then_some(()),
            _ => None,
        }
    }

    /// One session more. `false`: there are too many.
    pub(crate) fn add(&mut self, who: Who, start: u64) -> bool {
        if self.sessions.len() >= MOST && !self.sessions.contains_key(&who) {
            return false;
        }
        let (known, count) = self.sessions.entry(who).or_insert((start, 0));
        (*known, *count) = (start, count.saturating_add(1));
        true
    }

    /// One session less. `false`: it is not listed.
    pub(crate) fn strike(&mut self, who: &Who) -> bool {
        let Some((_, count)) = self.sessions.get_mut(who) else { return false };
        *count -= 1;
        if *count == 0 {
            self.sessions.remove(who);
        }
        true
    }

    /// Each client once.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (Who, u64)> + '_ {
        self.sessions.iter().map(|(who, (start, _))| (*who, *start))
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The whole table as text.
    pub(crate) fn text(&self, boot: &str) -> String {
        let mut text = format!("{HEADER}{boot}\n");
        for (who, (start, count)) in &self.sessions {
            (0..*count).for_each(|_| text.push_str(&begun(who, *start)));
        }
        text
    }
}

/// The line of a session that has begun.
pub(crate) fn begun(who: &Who, start: u64) -> String {
    let Who { uid, pid, instance } = who;
    line(format_args!("+ {uid} {pid} {start} {instance}"))
}

/// The line of a session that has ended.
pub(crate) fn ended(who: &Who) -> String {
    let Who { uid, pid, instance } = who;
    line(format_args!("- {uid} {pid} {instance}"))
}

fn line(text: std::fmt::Arguments<'_>) -> String {
    let mut line = String::with_capacity(64);
    let _ = writeln!(line, "{text}");
    line
}

/// A number as this module writes it, and in no other form.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: &str = "b007";

    fn who(pid: u32) -> Who {
        Who { uid: 1000, pid, instance: 7 }
    }

    fn parsed(lines: &str) -> (Listed, usize) {
        Listed::parse(format!("{HEADER}{BOOT}\n{lines}").as_bytes(), BOOT).unwrap()
    }

    #[test]
    fn a_session_is_listed_until_it_has_ended() {
        let lines = [begun(&who(1), 11), begun(&who(2), 22), ended(&who(1))].concat();
        let (listed, bad) = parsed(&lines);
        assert_eq!((listed.clients().collect::<Vec<_>>(), bad), (vec![(who(2), 22)], 0));
        assert_eq!(Listed::parse(listed.text(BOOT).as_bytes(), BOOT), Ok((listed, 0)));
    }

    #[test]
    fn of_two_sessions_of_one_client_the_end_of_one_leaves_the_other() {
        let (mut listed, _) = parsed(&[begun(&who(1), 11), begun(&who(1), 11), ended(&who(1))].concat());
        assert_eq!(listed.len(), 1);
        assert!(listed.strike(&who(1)) && !listed.strike(&who(1)));
        assert_eq!(listed, Listed::default());
    }

    #[test]
    fn bad_lines_are_left_out_and_counted() {
        let good = begun(&who(1), 11);
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
        assert_eq!(parsed(good.trim_end()), (Listed::default(), 1), "a line that was cut off");
    }

    #[test]
    fn another_kind_of_text_and_another_boot_are_refused() {
        for text in ["", "garbage", HEADER, "lapce-ipc sessions 2 b007\n", "lapce-ipc sessions 1 b007"] {
            assert_eq!(Listed::parse(text.as_bytes(), BOOT), Err(TextError::Header), "{text:?}");
        }
        let text = format!("{HEADER}other\n{}", begun(&who(1), 11));
        assert_eq!(Listed::parse(text.as_bytes(), BOOT), Err(TextError::OtherBoot));
    }

    #[test]
    fn a_full_table_takes_no_other_and_its_text_fits() {
        let mut listed = Listed::default();
        for pid in 0..MOST as u32 {
            assert!(listed.add(Who { uid: u32::MAX, pid: u32::MAX - pid, instance: 0x7fff_ffff }, u64::MAX));
        }
        assert!(!listed.add(who(1), 1));
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
            if let Ok((listed, _)) = Listed::parse(&text, BOOT) {
                prop_assert_eq!(Listed::parse(listed.text(BOOT).as_bytes(), BOOT), Ok((listed, 0)));
            }
        }

        #[test]
        fn the_text_of_the_events_is_the_table(events in prop::collection::vec((any::<bool>(), 0..4u32), 0..40)) {
            let (mut listed, mut text) = (Listed::default(), Listed::default().text(BOOT));
            for (begins, pid) in events {
                if begins {
                    prop_assert!(listed.add(who(pid), u64::from(pid)));
                    text += &begun(&who(pid), u64::from(pid));
                } else if listed.strike(&who(pid)) {
                    text += &ended(&who(pid));
                }
            }
            prop_assert_eq!(Listed::parse(text.as_bytes(), BOOT), Ok((listed, 0)));
        }
    }
}
