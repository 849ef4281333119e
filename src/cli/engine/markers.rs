//! The markers that models were trained with to fill in the middle.

use super::super::fim;
use clap::ValueEnum;

/// Models with the same markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Family {
    /// Qwen coder, CodeGemma
    Qwen,
    /// StarCoder, Granite, Refact, Stable Code
    Starcoder,
    /// DeepSeek coder
    Deepseek,
    /// CodeLlama
    Codellama,
    /// Codestral
    Codestral,
}

/// Parts of model names, in small letters, and their family.
const NAMES: &[(&str, Family)] = &[
    ("qwen", Family::Qwen),
    ("codegemma", Family::Qwen),
    ("starcoder", Family::Starcoder),
    ("granite", Family::Starcoder),
    ("refact", Family::Starcoder),
    ("stable-code", Family::Starcoder),
    ("deepseek", Family::Deepseek),
    ("codellama", Family::Codellama),
    ("code-llama", Family::Codellama),
    ("codestral", Family::Codestral),
];

impl Family {
    /// The family of a model, by its name.
    pub(super) fn of_model(name: &str) -> Option<Family> {
        let name = name.to_lowercase();
        NAMES.iter().find(|(part, _)| name.contains(part)).map(|(_, family)| *family)
    }

    /// The prompt for the text between `prefix` and `suffix`.
    pub(super) fn prompt(self, prefix: &str, suffix: &str) -> String {
        match self {
            Family::Qwen => format!("<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"),
            Family::Starcoder => format!("<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"),
            Family::Deepseek => format!("<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>"),
            Family::Codellama => format!("<PRE> {prefix} <SUF>{suffix} <MID>"),
            Family::Codestral => format!("[SUFFIX]{suffix}[PREFIX]{prefix}"),
        }
    }

    /// Markers that could be a program's text, if the model were another.
    fn own(self) -> &'static [&'static str] {
        match self {
            Family::Qwen | Family::Starcoder | Family::Deepseek => &[],
            Family::Codellama => &["<PRE>", "<SUF>", "<MID>", "<EOT>", "</s>"],
            Family::Codestral => &["[PREFIX]", "[SUFFIX]", "[MIDDLE]", "</s>"],
        }
    }
}

/// The texts that must not appear in a completion.
pub(super) fn forbidden(family: Option<Family>) -> impl Iterator<Item = &'static str> {
    fim::MARKERS.iter().chain(family.map_or(&[][..], Family::own)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_name() {
        for (name, family) in [
            ("Qwen2.5-Coder-1.5B-Q8_0.gguf", Some(Family::Qwen)),
            ("ibm-granite/granite-3b-code-base", Some(Family::Starcoder)),
            ("deepseek-coder:1.3b", Some(Family::Deepseek)),
            ("gpt-4o", None),
        ] {
            assert_eq!(Family::of_model(name), family, "{name}");
        }
    }

    #[test]
    fn html_is_forbidden_only_for_a_model_whose_markers_it_is() {
        assert!(!forbidden(Some(Family::Qwen)).any(|text| text == "<PRE>"));
        assert!(forbidden(Some(Family::Codellama)).any(|text| text == "<PRE>"));
        assert!(forbidden(None).any(|text| text == "<|fim_middle|>"));
    }

    #[test]
    fn each_marker_of_a_prompt_is_forbidden_in_the_text() {
        for family in Family::value_variants() {
            let mut prompt = family.prompt("", "");
            for marker in forbidden(Some(*family)) {
                prompt = prompt.replace(marker, "");
            }
            assert_eq!(prompt.trim(), "", "{family:?}");
        }
    }
}
