//! Lines of results against a manifest: each must be what was signed, none may be missing, and they stand in order.

use std::io::BufRead;

use anyhow::Context;
use ternfleet_proto::proof::{File, Leaf, Manifest};

use super::{Fault, Kind, OutputLine};

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) lines: u64,
    pub(crate) faults: Vec<Fault>,
}

/// Compares every line. The results may be a batch's output file, its error file, or both in one.
pub(crate) fn compare(mut results: impl BufRead, manifest: &Manifest) -> anyhow::Result<Compared> {
    let mut compared = Compared::default();
    let mut seen = vec![false; manifest.rows.len()];
    let (mut errors, mut outputs) = (false, false);
    let mut last = 0;
    let mut text = String::new();
    loop {
        text.clear();
        if results.read_line(&mut text).context("the results cannot be read")? == 0 {
            break;
        }
        compared.lines += 1;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let parsed = match OutputLine::parse(line) {
            Ok(parsed) => parsed,
            Err(reason) => {
                let at = compared.lines;
                let message = format!("line {at} of the results is no output line: {reason}");
                compared.faults.push(Fault::of_all(Kind::Form, message));
                continue;
            }
        };
        let number = parsed.ternfleet.line;
        let file = if parsed.error.is_some() { File::Error } else { File::Output };
        errors |= file == File::Error;
        outputs |= file == File::Output;
        if number <= last {
            let message = format!("it stands after line {last}: lines were swapped or repeated");
            compared.faults.push(Fault::of_line(number, Kind::Order, message));
        }
        last = last.max(number);
        let place = manifest.rows.binary_search_by_key(&number, |row| row.line);
        let Ok(place) = place else {
            let message = "no such line was signed".to_owned();
            compared.faults.push(Fault::of_line(number, Kind::Added, message));
            continue;
        };
        seen[place] = true;
        if Leaf::new(number, file, line.as_bytes()) != manifest.rows[place].leaf {
            let message = "it was changed after it was signed".to_owned();
            compared.faults.push(Fault::of_line(number, Kind::Changed, message));
        }
    }
    // A batch has two files; whoever has one of them has all of its lines.
    let wanted = |file: File| match file {
        File::Output => outputs || !errors,
        File::Error => errors,
    };
    let missing = manifest.rows.iter().zip(&seen).filter(|(row, seen)| !**seen && wanted(row.leaf.file()));
    compared.faults.extend(
        missing.map(|(row, _)| Fault::of_line(row.line, Kind::Missing, "it was left out".to_owned())),
    );
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::proof::{FORMAT, Row, SigningKey, Statement, Tree, write_head, write_row};
    use ternfleet_proto::{Digest, TimeMs};

    use super::*;

    fn line(number: u32) -> String {
        let error = if number == 3 { "{\"code\":\"poison\"}" } else { "null" };
        format!(
            "{{\"error\":{error},\"id\":\"batch_req_a_{}\",\"response\":null,\"ternfleet\":{{\"line\":{number}}}}}",
            number - 1
        )
    }

    fn manifest() -> Manifest {
        let (mut tree, mut rows) = (Tree::default(), Vec::new());
        for number in 1..=6 {
            let file = if number == 3 { File::Error } else { File::Output };
            let leaf = Leaf::new(number, file, line(number).as_bytes());
            tree.push(leaf.digest());
            rows.push(Row { line: number, leaf });
        }
        let statement = Statement {
            format: FORMAT.to_owned(),
            version: String::new(),
            batch: "batch_a".parse().unwrap(),
            written_at: TimeMs(1),
            model: None,
            input: None,
            output: None,
            error: None,
            models: Vec::new(),
            unproved: 0,
            leaves: 6,
            root: tree.root(),
        };
        let mut text = Vec::new();
        write_head(&mut text, &statement, &SigningKey::from_seed(Digest::of(b"k").0)).unwrap();
        rows.iter().for_each(|row| write_row(&mut text, row).unwrap());
        Manifest::read(&text[..]).unwrap()
    }

    fn faults(lines: &[String]) -> Vec<(Option<u32>, Kind)> {
        let compared = compare((lines.join("\n") + "\n").as_bytes(), &manifest()).unwrap();
        compared.faults.into_iter().map(|fault| (fault.line, fault.kind)).collect()
    }

    fn lines(numbers: &[u32]) -> Vec<String> {
        numbers.iter().map(|&number| line(number)).collect()
    }

    #[test]
    fn both_files_hold_in_one_or_each_by_itself() {
        assert_eq!(faults(&lines(&[1, 2, 3, 4, 5, 6])), []);
        assert_eq!(faults(&lines(&[1, 2, 4, 5, 6])), []);
        assert_eq!(faults(&lines(&[3])), []);
    }

    #[test]
    fn whatever_is_done_to_a_line_is_named() {
        let mut changed = lines(&[1, 2, 3, 4, 5, 6]);
        changed[4] = changed[4].replace("batch_req_a_4", "batch_req_a_5");
        assert_eq!(faults(&changed), [(Some(5), Kind::Changed)]);
        assert_eq!(faults(&lines(&[1, 2, 4, 6])), [(Some(5), Kind::Missing)]);
        assert_eq!(faults(&lines(&[1, 2, 3, 5, 4, 6])), [(Some(4), Kind::Order)]);
        assert_eq!(faults(&lines(&[1, 2, 2, 4, 5, 6])), [(Some(2), Kind::Order)]);
        assert_eq!(faults(&lines(&[1, 2, 4, 5, 6, 7])), [(Some(7), Kind::Added)]);
        let mut moved = lines(&[1, 2, 4, 5, 6]);
        // Whoever swaps two answers and their numbers changes both lines.
        moved.swap(0, 1);
        moved[0] = moved[0].replace("\"line\":2", "\"line\":1");
        moved[1] = moved[1].replace("\"line\":1", "\"line\":2");
        assert_eq!(faults(&moved), [(Some(1), Kind::Changed), (Some(2), Kind::Changed)]);
        let mut broken = lines(&[1, 2, 4, 5, 6]);
        broken.push("{".to_owned());
        assert_eq!(faults(&broken), [(None, Kind::Form)]);
    }
}
