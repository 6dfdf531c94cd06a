//! What `--help` adds to the flags: the commands in groups, and examples of each. A test runs every example through the
//! parser.

use clap::{Command, CommandFactory};

use crate::args::Arguments;

/// The commands as the help lists them, by what a person wants to do.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Start", &["demo", "up", "launch", "fleets", "down"]),
    (
        "Batches",
        &["submit", "quote", "batches", "status", "results", "verify", "cancel", "resubmit", "batch", "dead"],
    ),
    ("Fleet", &["top", "pods", "scale", "doctor", "logs"]),
    ("Models and this machine", &["model", "generate", "bench", "topology", "perplexity", "eval", "logits"]),
    ("Services", &["coordinator", "worker", "pod", "nats", "key", "backup", "restore", "simulate"]),
    ("Shell", &["completions", "man"]),
];

/// Command lines with what they do, by command.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("ternfleet demo", "see it work"),
            ("ternfleet up", "a fleet on this machine"),
            ("ternfleet submit prompts.jsonl --out answers.jsonl", "a batch, in another terminal"),
            ("ternfleet top", "watch it"),
        ],
    ),
    (
        "demo",
        &[("ternfleet demo", ""), ("ternfleet demo --prompts my-prompts.jsonl", "with your own prompts")],
    ),
    (
        "up",
        &[
            ("ternfleet up", "two workers that run the storyteller"),
            (
                "ternfleet up --model bitnet-b1.58-2B-4T --workers 1",
                "a model downloaded by `ternfleet model pull`",
            ),
            ("ternfleet up --scale 0..2", "workers start and stop as batches need them"),
        ],
    ),
    (
        "launch",
        &[
            ("ternfleet launch prompts.jsonl", "on this machine"),
            ("ternfleet launch prompts.jsonl --at runpod --budget 5 --deadline 2h", "on rented pods"),
            ("ternfleet launch --resume", "continue after an interruption"),
        ],
    ),
    ("fleets", &[("ternfleet fleets", "fleets that have not ended"), ("ternfleet fleets --all", "")]),
    (
        "down",
        &[
            ("ternfleet down", "the fleet of this folder, or the one that was launched"),
            ("ternfleet down --all", "every launched fleet"),
        ],
    ),
    (
        "submit",
        &[
            (
                "ternfleet submit prompts.jsonl --out answers.jsonl",
                "wait, then write the answers in input order",
            ),
            ("ternfleet submit prompts.jsonl --detach --name tales", "print the batch id and return"),
            (
                "ternfleet submit prompts.jsonl --budget 0.50 --deadline 2h",
                "rejected if these limits cannot be met",
            ),
            (
                "ternfleet submit reviews.parquet --prompt 'Classify: {{ text }}' --out labels.parquet",
                "a prompt over each row of a table",
            ),
            ("ternfleet submit - --out -", "from standard input to standard output"),
        ],
    ),
    (
        "quote",
        &[
            ("ternfleet quote prompts.jsonl", "cost and finish on the running fleet"),
            (
                "ternfleet quote prompts.jsonl --deadline 2h --budget 0.50",
                "and whether both limits can be met",
            ),
        ],
    ),
    ("batches", &[("ternfleet batches", ""), ("ternfleet batches --limit 5 --json", "")]),
    (
        "status",
        &[("ternfleet status tales", "by name"), ("ternfleet status 1f3a", "by the beginning of the id")],
    ),
    (
        "results",
        &[
            ("ternfleet results tales --format text", "print the answers so far"),
            ("ternfleet results tales --wait --out answers.jsonl", "all of them, in input order"),
            ("ternfleet results tales --format csv --out answers.csv", "for a spreadsheet"),
            ("ternfleet results tales --table reviews.csv --out labels.csv", "beside the rows of its table"),
        ],
    ),
    (
        "verify",
        &[
            ("ternfleet verify --manifest proof.jsonl", "signature and tree alone"),
            ("ternfleet verify answers.jsonl --manifest proof.jsonl --input prompts.jsonl --sample 1%", ""),
            ("ternfleet verify answers.jsonl --input prompts.jsonl --line 7", "one line, run again here"),
        ],
    ),
    ("cancel", &[("ternfleet cancel tales", "")]),
    (
        "resubmit",
        &[
            ("ternfleet resubmit tales --failed --out again.jsonl", ""),
            ("ternfleet resubmit tales --failed --code batch_expired", "only expired lines"),
        ],
    ),
    ("batch", &[("ternfleet batch set tales --budget 2", "")]),
    (
        "batch set",
        &[
            ("ternfleet batch set tales --budget 2", "a paused batch continues"),
            ("ternfleet batch set tales --deadline 6h --priority 5", ""),
        ],
    ),
    ("dead", &[("ternfleet dead list", ""), ("ternfleet dead retry tales", "")]),
    ("dead list", &[("ternfleet dead list --batch tales", "")]),
    ("dead show", &[("ternfleet dead show tales 12", "every attempt of line 12")]),
    ("dead retry", &[("ternfleet dead retry tales 12 40", "retry these lines, as a new batch")]),
    ("top", &[("ternfleet top", ""), ("ternfleet top --once", "print once, for scripts")]),
    ("pods", &[("ternfleet pods", ""), ("ternfleet pods --json", "")]),
    ("scale", &[("ternfleet scale show", ""), ("ternfleet scale set --max 4", "")]),
    ("scale show", &[("ternfleet scale show", "")]),
    (
        "scale set",
        &[
            ("ternfleet scale set --max 4 --usd-per-hour 2", "at most 4 pods for at most $2 an hour"),
            ("ternfleet scale set --max 0", "return all pods"),
        ],
    ),
    (
        "scale plan",
        &[("ternfleet scale plan", ""), ("ternfleet scale plan --max 8", "the plan with at most 8 pods")],
    ),
    ("doctor", &[("ternfleet doctor", "")]),
    (
        "logs",
        &[
            ("ternfleet logs", "the last lines of every process"),
            ("ternfleet logs coordinator -n 100", ""),
            ("ternfleet logs -f", "follow new lines"),
        ],
    ),
    ("model", &[("ternfleet model list", ""), ("ternfleet model pull bitnet-b1.58-2B-4T", "")]),
    ("model pull", &[("ternfleet model pull bitnet-b1.58-2B-4T", "1.19 GB, checked by its digest")]),
    ("model list", &[("ternfleet model list", "")]),
    (
        "model verify",
        &[("ternfleet model verify", "all downloaded models"), ("ternfleet model verify storyteller", "")],
    ),
    ("model synth", &[("ternfleet model synth --shape tiny --out tiny.gguf", "")]),
    (
        "model inspect",
        &[("ternfleet model inspect storyteller", ""), ("ternfleet model inspect model.gguf", "")],
    ),
    ("model convert", &[("ternfleet model convert checkpoint --out model.gguf", "")]),
    (
        "generate",
        &[
            ("ternfleet generate -p 'Once upon a time'", "with the storyteller"),
            ("ternfleet generate --model bitnet-b1.58-2B-4T --chat -p 'Name three rivers.'", ""),
        ],
    ),
    (
        "bench",
        &[
            ("ternfleet bench", "the storyteller on 1, 2, 4 … threads"),
            (
                "ternfleet bench --model bitnet-b1.58-2B-4T --batch 1,8,32 --price-usd-per-hour 0.34",
                "with prices",
            ),
        ],
    ),
    ("topology", &[("ternfleet topology", "")]),
    (
        "perplexity",
        &[("ternfleet perplexity text.txt", ""), ("ternfleet perplexity text.txt --model model.gguf", "")],
    ),
    ("eval", &[("ternfleet eval perplexity text.txt", "")]),
    ("eval perplexity", &[("ternfleet eval perplexity text.txt", "")]),
    ("eval lambada", &[("ternfleet eval lambada lambada.jsonl --limit 200", "")]),
    ("eval multiple-choice", &[("ternfleet eval multiple-choice arc.jsonl --format arc", "")]),
    ("eval kl", &[("ternfleet eval kl model.gguf --head q8 --text text.txt", "the effect of a lossy head")]),
    ("logits", &[("ternfleet logits --ids 1,2,3 --out logits.f32", "")]),
    ("coordinator", &[("ternfleet coordinator --nats nats://127.0.0.1:4222 --http 127.0.0.1:8080", "")]),
    (
        "worker",
        &[
            ("ternfleet worker --nats nats://127.0.0.1:4222", "runs the storyteller"),
            (
                "ternfleet worker --model model.gguf --threads 16 --price-usd-per-hour 0.34 --pod-class rtx4090",
                "",
            ),
        ],
    ),
    ("pod", &[("ternfleet pod --model bitnet-b1.58-2B-4T", "download the model, then run the worker")]),
    ("nats", &[("ternfleet nats init --node n1=nats.example.org", ""), ("ternfleet nats token", "")]),
    (
        "nats init",
        &[
            ("ternfleet nats init --node n1=nats.example.org", "one server"),
            (
                "ternfleet nats init --node n1=10.0.0.1 --node n2=10.0.0.2 --node n3=10.0.0.3",
                "a cluster of three",
            ),
        ],
    ),
    ("nats user", &[("ternfleet nats user --name acme", "credentials for a tenant")]),
    ("nats token", &[("ternfleet nats token --life 15m", "new pods can join with it")]),
    ("nats revoke", &[("ternfleet nats revoke UDXK", "the user's public key, from the coordinator's log")]),
    ("nats rotate", &[("ternfleet nats rotate worker", "every worker has to join again")]),
    ("key", &[("ternfleet key new --tenant acme", "")]),
    ("key proof", &[("ternfleet key proof", "what `verify --key` takes")]),
    ("key new", &[("ternfleet key new --tenant acme", "append its output to the file of gateway.keys_file")]),
    ("backup", &[("ternfleet backup --dir backup-monday", "")]),
    (
        "restore",
        &[("ternfleet restore --dir backup-monday", "into a NATS server without the fleet's streams")],
    ),
    ("simulate", &[("ternfleet simulate --fleet deploy/fleets/report.toml", "")]),
    ("completions", &[("ternfleet completions bash", "")]),
    ("man", &[("ternfleet man --out man1", "")]),
];

/// The whole command line, with groups and examples.
pub(crate) fn command() -> Command {
    let command = Arguments::command();
    let list = listed(&command);
    let command = command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
    ));
    with_examples(command, "")
}

/// Every group with its commands and what they do.
fn listed(command: &Command) -> String {
    let mut text = String::new();
    for (group, names) in GROUPS {
        text += &format!("{group}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(|found| found.get_about());
            let about = about.map(ToString::to_string).unwrap_or_default();
            text += &format!("  {name:<12} {about}\n");
        }
        text.push('\n');
    }
    text
}

/// Adds the examples behind what the help of a command says already, and so on below it.
fn with_examples(command: Command, path: &str) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let known = EXAMPLES.iter().find(|(of, _)| *of == path);
    let command = match known {
        None => command,
        Some((_, examples)) => {
            let before = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
            command.after_help(format!("{before}{}", shown(examples)))
        }
    };
    below.into_iter().fold(command, |command, name| {
        let path = format!("{path} {name}").trim().to_owned();
        command.mut_subcommand(name, |sub| with_examples(sub, &path))
    })
}

/// What an example does is shown after it, or in the line above where that would be too far to the right.
fn shown(examples: &[(&str, &str)]) -> String {
    let width = examples.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let wide = examples.iter().any(|(_, does)| width + does.len() > 92);
    let mut text = "Examples:".to_owned();
    for (line, does) in examples {
        text += &match (does.is_empty(), wide) {
            (true, _) => format!("\n  {line}"),
            (false, true) => format!("\n  # {does}\n  {line}"),
            (false, false) => format!("\n  {line:<width$}  # {does}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_that_is_shown_is_in_one_group() {
        let command = Arguments::command();
        let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let visible: BTreeSet<&str> = visible.map(Command::get_name).collect();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), visible);
        assert_eq!(grouped.len(), visible.len(), "one is in two groups");
    }

    /// Paths of all commands that are shown.
    fn paths(command: &Command, path: &str, into: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name()).trim().to_owned();
            paths(sub, &path, into);
            into.push(path);
        }
    }

    /// Words as a shell cuts them, as far as the examples go: blanks, and single quotes.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (place, part) in line.split('\'').enumerate() {
            match place % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => words.push(part.to_owned()),
            }
        }
        words
    }

    #[test]
    fn every_command_has_examples_and_every_example_is_one_of_its_command_lines() {
        let mut all = vec![String::new()];
        paths(&Arguments::command(), "", &mut all);
        for path in &all {
            let (_, examples) = EXAMPLES
                .iter()
                .find(|(of, _)| of == path)
                .unwrap_or_else(|| panic!("{path:?} has no example"));
            for (line, _) in *examples {
                assert!(line.starts_with(format!("ternfleet {path}").trim_end()), "{line} below {path:?}");
                if let Err(error) = command().try_get_matches_from(words(line)) {
                    panic!("{line}: {error}");
                }
            }
        }
        assert_eq!(EXAMPLES.len(), all.len(), "an example of a command that there is not");
    }

    /// Every help text of a command and of those below it.
    fn texts(command: &Command, into: &mut Vec<String>) {
        into.extend(command.get_about().map(ToString::to_string));
        into.extend(command.get_arguments().filter_map(|one| one.get_help().map(ToString::to_string)));
        for sub in command.get_subcommands() {
            texts(sub, into);
        }
    }

    #[test]
    fn help_texts_are_plain_and_have_one_form() {
        let mut all = Vec::new();
        texts(&Arguments::command(), &mut all);
        assert!(all.len() > 200, "{}", all.len());
        for text in &all {
            assert!(!text.ends_with('.') && !text.starts_with(char::is_lowercase), "{text}");
            for unclear in
                ["unless given", "go on", "goes on", "give back", "given back", "Most that", "at once"]
            {
                assert!(!text.contains(unclear), "{unclear:?} in: {text}");
            }
        }
    }

    #[test]
    fn the_help_shows_groups_and_examples() {
        let text = command().render_help().to_string();
        for said in ["Batches:\n  submit ", "Examples:\n  ternfleet demo ", "Exit codes:"] {
            assert!(text.contains(said), "{said:?} is missing in\n{text}");
        }
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 120, "{widest} columns:\n{text}");
    }
}
