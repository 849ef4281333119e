//! The ways to have a model fill in the middle, and the choice of one.
//!
//! Servers differ: some take `suffix`, some refuse it, llama.cpp ignores it and has `/infill`, which is 501 for a model
//! without FIM tokens. The way that works is found once per endpoint. A refusal that may be the fault of the request is
//! a suspicion only: the next way is tried with the same request, and the first one is given up if that works.

use clap::ValueEnum;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// `/completions` with `suffix`
    Suffix,
    /// llama.cpp's `/infill`
    Infill,
    /// `/completions` with the model's FIM markers in the prompt
    Markers,
    /// `/completions` with the text before the cursor only
    Prefix,
}

impl Way {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Way::Suffix => "suffix",
            Way::Infill => "infill",
            Way::Markers => "markers",
            Way::Prefix => "prefix",
        }
    }
}

/// What a refusal says about the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint does not have it.
    Absent,
    /// Perhaps; the next way tells.
    Suspect,
    /// Nothing.
    Innocent,
}

/// The ways that may work, best first.
#[derive(Debug)]
pub(super) struct Ways {
    left: Vec<Way>,
    is_proven: bool,
}

impl Ways {
    /// Only this one, if `forced`. `owner`: as `/models` names it; `has_markers`: whether the model's are known.
    pub(super) fn new(forced: Option<Way>, owner: Option<&str>, has_markers: bool) -> Ways {
        let mut left = match (forced, owner) {
            (Some(way), _) => return Ways { left: vec![way], is_proven: false },
            (None, Some("llamacpp")) => vec![Way::Infill, Way::Markers, Way::Prefix],
            (None, Some("vllm")) => vec![Way::Markers, Way::Prefix],
            (None, _) => vec![Way::Suffix, Way::Infill, Way::Markers, Way::Prefix],
        };
        left.retain(|way| has_markers || *way != Way::Markers);
        Ways { left, is_proven: false }
    }

    /// The way to try first.
    pub(super) fn best(&self) -> Way {
        self.left.first().copied().unwrap_or(Way::Prefix)
    }

    /// The way that works, if it is known.
    pub(super) fn proven(&self) -> Option<Way> {
        self.is_proven.then(|| self.best())
    }

    /// The way to try after `way`.
    pub(super) fn after(&self, way: Way) -> Option<Way> {
        let at = self.left.iter().position(|left| *left == way)?;
        self.left.get(at + 1).copied()
    }

    /// What an error status to a request by `way` says about the way.
    pub(super) fn judge(&self, way: Way, status: u16, message: &str) -> Verdict {
        let is_proven = self.proven() == Some(way);
        let message = message.to_lowercase();
        match (way, status) {
            (Way::Suffix, 400 | 422 | 501) if message.contains("suffix") => Verdict::Absent,
            (Way::Infill, 404 | 405 | 501) => Verdict::Absent,
            (Way::Infill, _) if message.contains("infill") && message.contains("not supported") => Verdict::Absent,
            (Way::Suffix | Way::Infill, 400 | 404 | 405 | 422 | 501) if !is_proven => Verdict::Suspect,
            _ => Verdict::Innocent,
        }
    }

    /// `way` does not work. The last way stays.
    pub(super) fn give_up(&mut self, way: Way) {
        if self.left.len() > 1 && self.left.contains(&way) {
            self.is_proven &= self.best() != way;
            self.left.retain(|left| *left != way);
        }
    }

    /// `way` works. Whether this is news.
    pub(super) fn works(&mut self, way: Way) -> bool {
        let is_news = self.best() == way && !self.is_proven;
        self.is_proven |= is_news;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_suffix_is_given_up_for_good() {
        let mut ways = Ways::new(None, Some("fake"), true);
        assert_eq!(ways.best(), Way::Suffix);
        assert_eq!(ways.judge(Way::Suffix, 400, "suffix is not currently supported"), Verdict::Absent);
        ways.give_up(Way::Suffix);
        assert_eq!(ways.judge(Way::Infill, 404, ""), Verdict::Absent);
        ways.give_up(Way::Infill);
        assert_eq!((ways.best(), ways.after(Way::Markers)), (Way::Markers, Some(Way::Prefix)));
        assert!(ways.works(Way::Markers) && !ways.works(Way::Markers));
        assert_eq!(ways.proven(), Some(Way::Markers));
    }

    #[test]
    fn a_fault_of_the_request_does_not_change_a_way_that_works() {
        let mut ways = Ways::new(None, None, false);
        assert_eq!(ways.judge(Way::Suffix, 400, "prompt is too long"), Verdict::Suspect);
        ways.works(Way::Suffix);
        assert_eq!(ways.judge(Way::Suffix, 400, "prompt is too long"), Verdict::Innocent);
        assert_eq!(ways.judge(Way::Suffix, 500, "suffix"), Verdict::Innocent);
        // Another model behind the same endpoint.
        assert_eq!(ways.judge(Way::Suffix, 400, "Suffix is not supported"), Verdict::Absent);
    }

    #[test]
    fn infill_without_fim_tokens_is_absent() {
        let mut ways = Ways::new(None, Some("llamacpp"), false);
        assert_eq!(ways.best(), Way::Infill);
        assert_eq!(ways.judge(Way::Infill, 501, "This server does not support infill"), Verdict::Absent);
        ways.give_up(Way::Infill);
        assert_eq!(ways.best(), Way::Prefix);
        ways.give_up(Way::Prefix);
        assert_eq!(ways.best(), Way::Prefix, "the last way stays");
    }

    #[test]
    fn a_forced_way_is_the_only_one() {
        let ways = Ways::new(Some(Way::Markers), Some("llamacpp"), true);
        assert_eq!((ways.best(), ways.after(Way::Markers)), (Way::Markers, None));
    }
}
