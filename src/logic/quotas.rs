//! Quotas (`[[quota]]`): groups of a uid's clients that count as a user of their own, by their names.
//!
//! 1. A client belongs to the first quota, in the order of the configuration, with a pattern that matches its name.
//!    A pattern is a name, or the beginning of names with a `*` behind it.
//! 2. The clients of two uids in one quota are two users.
//! 3. A quota has a number from its first configuration to the end of the broker, so that another configuration changes
//!    nothing for the clients that are connected: what they hold is given back to the user that it was charged to.

use super::shares::{NO_QUOTA, Principal};

/// The quotas of the configuration in force, and the names of all before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quotas {
    /// The name of the quota with the number 1, and so on.
    names: Vec<String>,
    /// Those in force: their numbers and their patterns, in order.
    rules: Vec<(u16, Vec<String>)>,
}

impl Quotas {
    /// The quotas of another configuration: names with the patterns of each. One that was configured before keeps its
    /// number. Beyond 65,535 names a new one is no quota.
    pub(crate) fn followed_by<'a>(&self, quotas: impl Iterator<Item = (&'a str, &'a [String])>) -> Quotas {
        let (mut names, mut rules) = (self.names.clone(), Vec::new());
        for (name, clients) in quotas {
            let known = names.iter().position(|known| known == name);
            let Ok(number) = u16::try_from(known.unwrap_or(names.len()) + 1) else { continue };
            if known.is_none() {
                names.push(name.to_owned());
            }
            rules.push((number, clients.to_vec()));
        }
        Quotas { names, rules }
    }

    /// The user that a client of `uid` with this name belongs to.
    pub(crate) fn principal(&self, uid: u32, client: &str) -> Principal {
        let is_its = |(_, patterns): &&(u16, Vec<String>)| patterns.iter().any(|pattern| matches(pattern, client));
        Principal::new(uid, self.rules.iter().find(is_its).map_or(NO_QUOTA, |(number, _)| *number))
    }

    /// The name of the quota of a user, if it is one.
    pub(crate) fn name(&self, user: Principal) -> Option<&str> {
        let at = usize::from(user.quota()).checked_sub(1)?;
        self.names.get(at).map(String::as_str)
    }

    /// A user as the subject of a sentence: `user 1000`, or `user 1000, quota "plugins",`.
    pub(crate) fn subject(&self, user: Principal) -> String {
        let uid = user.uid();
        self.name(user).map_or_else(|| format!("user {uid}"), |name| format!("user {uid}, quota {name:?},"))
    }
}

/// Whether a client's name matches a pattern. No name has a `*`.
fn matches(pattern: &str, client: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => client.starts_with(beginning),
        None => client == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quotas(before: &Quotas, tables: &[(&str, &[&str])]) -> Quotas {
        let owned = |clients: &&[&str]| clients.iter().map(|client| (*client).to_owned()).collect::<Vec<_>>();
        let owned: Vec<_> = tables.iter().map(|(name, clients)| (*name, owned(clients))).collect();
        before.followed_by(owned.iter().map(|(name, clients)| (*name, clients.as_slice())))
    }

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for (pattern, client, is_match) in [
            ("lsp", "lsp", true),
            ("lsp", "lsp-rust", false),
            ("lsp", "ls", false),
            ("lsp*", "lsp", true),
            ("lsp*", "lsp-rust", true),
            ("lsp.*", "lsp", false),
            ("lsp.*", "lsp.rust.main", true),
            ("lsp*", "LSP", false),
            ("*", "any.thing", true),
        ] {
            assert_eq!(matches(pattern, client), is_match, "{pattern} {client}");
        }
    }

    #[test]
    fn the_first_quota_that_matches_counts_for_each_uid_by_itself() {
        let found = quotas(&Quotas::default(), &[("one", &["a-*", "b"]), ("two", &["b", "a-x", "c"])]);
        let name = |client| found.name(found.principal(7, client));
        let clients = ["a-x", "b", "c", "d", "a"];
        assert_eq!(clients.map(name), [Some("one"), Some("one"), Some("two"), None, None]);
        assert_eq!(found.principal(7, "d"), Principal::of_uid(7));
        assert_eq!(found.principal(7, "a-x"), found.principal(7, "b"));
        assert_ne!(found.principal(7, "b"), found.principal(8, "b"));
        assert_eq!(found.subject(found.principal(7, "b")), "user 7, quota \"one\",");
        assert_eq!(found.subject(found.principal(7, "d")), "user 7");
    }

    #[test]
    fn another_configuration_changes_no_number() {
        let before = quotas(&Quotas::default(), &[("one", &["a"]), ("two", &["b"])]);
        let (one, two) = (before.principal(7, "a"), before.principal(7, "b"));
        let after = quotas(&before, &[("three", &["a"]), ("two", &["c"])]);
        let of = |client| after.principal(7, client);
        assert_eq!((of("c"), of("b")), (two, Principal::of_uid(7)));
        assert!(![one, two].contains(&of("a")));
        assert_eq!([one, two, of("a")].map(|user| after.name(user)), [Some("one"), Some("two"), Some("three")]);
        assert_eq!(quotas(&after, &[("one", &["a"])]).principal(7, "a"), one);
    }

    /// The meaning in the simplest form: each character is compared.
    fn naive(pattern: &[char], client: &[char]) -> bool {
        match (pattern, client) {
            (['*'], _) | ([], []) => true,
            ([wanted, pattern @ ..], [found, client @ ..]) => wanted == found && naive(pattern, client),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_first_match_counts(
            tables in prop::collection::vec(prop::collection::vec("[ab.]{0,3}\\*?", 1..4), 0..6),
            client in "[ab.]{1,4}",
            uid in any::<u32>(),
        ) {
            let names: Vec<String> = (1..=tables.len()).map(|number| format!("q{number}")).collect();
            let all = names.iter().map(String::as_str).zip(tables.iter().map(Vec::as_slice));
            let found = Quotas::default().followed_by(all).principal(uid, &client);
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            let is_match = |pattern: &String| naive(&letters(pattern), &letters(&client));
            let first = tables.iter().position(|patterns| patterns.iter().any(is_match));
            let number = first.map_or(NO_QUOTA, |at| at as u16 + 1);
            prop_assert_eq!((found.uid(), found.quota()), (uid, number));
        }
    }
}
