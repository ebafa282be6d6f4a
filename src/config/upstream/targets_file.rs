//! `targets_file`: the targets of an upstream in a file of their own, one a line, so that who knows them need not touch
//! the document.
//!
//! A line is `ADDRESS [weight=N] [backup]`. `#` begins a comment, empty lines are passed over. What is wrong with a line is
//! told without its text: the path may be that of a file which holds something else, and a secret.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::check::Checker;
use super::super::scalar::TargetAddr;
use super::{TargetSpec, UpstreamRaw};

/// More targets than this are a mistake.
const TARGETS: usize = 10_000;
/// Faults that are told of one file.
const FAULTS: usize = 20;

/// An address that is none.
const NO_ADDRESS: &str = "it does not begin with an address: `HOST:PORT`, `IP:PORT`, `[IPv6]:PORT` or `unix:PATH`, with a port that is not 0";

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0: the file as a whole.
    pub line: usize,
    pub message: String,
}

/// Reads the targets; relative `unix:` paths begin at `base`.
///
/// # Errors
/// Every line that is wrong, up to a bound. A file that would leave the upstream without a target is wrong as a whole.
pub fn parse(text: &[u8], base: &Path) -> Result<Vec<TargetSpec>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut targets: Vec<TargetSpec> = Vec::new();
    let mut seen: HashMap<TargetAddr, usize> = HashMap::new();
    let Ok(text) = std::str::from_utf8(text) else {
        return Err(vec![whole("it is not UTF-8")]);
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let mut fault = |message: String| {
            if faults.len() < FAULTS {
                let line = number;
                faults.push(Fault { line, message });
            }
        };
        let code = line.split('#').next().unwrap_or("").trim();
        if code.is_empty() {
            continue;
        }
        let target = match target(code, base) {
            Ok(target) => target,
            Err(message) => {
                fault(message.to_owned());
                continue;
            }
        };
        if let Some(first) = seen.insert(target.address.clone(), number) {
            fault(format!("its target is on line {first} already"));
            continue;
        }
        if targets.len() == TARGETS {
            fault(format!("more than {TARGETS} targets"));
            break;
        }
        targets.push(target);
    }
    if faults.is_empty() && targets.is_empty() {
        faults.push(whole("it names no target"));
    }
    if faults.is_empty() && targets.iter().all(|t| t.weight == 0) {
        faults.push(whole(
            "every target has weight 0, so none would get a request",
        ));
    }
    if faults.is_empty() {
        Ok(targets)
    } else {
        Err(faults)
    }
}

fn whole(message: &str) -> Fault {
    Fault {
        line: 0,
        message: message.to_owned(),
    }
}

fn target(line: &str, base: &Path) -> Result<TargetSpec, &'static str> {
    let mut words = line.split_whitespace();
    let address = words.next().unwrap_or("");
    let address = TargetAddr::parse(address, base).map_err(|_| NO_ADDRESS)?;
    let (mut weight, mut backup) = (None, false);
    for word in words {
        if word == "backup" {
            backup = true;
            continue;
        }
        let Some(("weight", number)) = word.split_once('=') else {
            return Err("a line is `ADDRESS [weight=N] [backup]`, and nothing else");
        };
        if weight.is_some() {
            return Err("`weight` is given twice");
        }
        let parsed = number.parse().ok().filter(|n| *n <= 1_000_u32);
        weight = Some(parsed.ok_or("`weight` is not a number from 0 to 1000")?);
    }
    Ok(TargetSpec {
        address,
        weight: weight.unwrap_or(1),
        backup,
    })
}

impl UpstreamRaw {
    /// The path, made absolute.
    pub(super) fn targets_file(&self, check: &mut Checker<'_>) -> Option<PathBuf> {
        let path = self.targets_file.as_ref()?;
        if path.is_empty() {
            check.findings.error(path.at, "the path of a file is empty");
            return None;
        }
        if self.targets.is_some() || self.spoiled.contains(&"targets") {
            check
                .findings
                .error(path.at, "`targets_file` stands instead of `targets`")
                .help("leave one of them out");
        }
        Some(check.base.join(path.as_str()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Result<Vec<(String, u32)>, Vec<(usize, String)>>;

    fn read(text: &str) -> Read {
        match parse(text.as_bytes(), Path::new("/base")) {
            Ok(targets) => Ok(targets
                .iter()
                .map(|t| (t.address.to_string(), t.weight))
                .collect()),
            Err(faults) => Err(faults.into_iter().map(|f| (f.line, f.message)).collect()),
        }
    }

    #[test]
    fn a_line_is_a_target() {
        let text = "\u{feff}# the api\r\n10.0.0.1:80\r\n\r\n  b.test:8080\tweight=3 backup # big\nunix:run/a.sock weight=0";
        let is = |address: &str, weight| (address.to_owned(), weight);
        assert_eq!(
            read(text).unwrap(),
            [
                is("10.0.0.1:80", 1),
                is("b.test:8080", 3),
                is("unix:/base/run/a.sock", 0)
            ]
        );
    }

    #[test]
    fn every_wrong_line_is_told() {
        let text = "a.test\na.test:80 weight=1001\na.test:80 weight=1 weight=2\n\na.test:80 now\nb.test:1\nb.test:1\n";
        let faults = read(text).unwrap_err();
        let lines: Vec<usize> = faults.iter().map(|f| f.0).collect();
        assert_eq!(lines, [1, 2, 3, 5, 7]);
        assert!(faults[4].1.contains("line 6"), "{faults:?}");
        for (text, word) in [
            ("", "no target"),
            ("# a\n", "no target"),
            ("a.test:1 weight=0", "weight 0"),
        ] {
            let faults = read(text).unwrap_err();
            assert!(faults[0].0 == 0 && faults[0].1.contains(word), "{faults:?}");
        }
        assert!(parse(b"\xff", Path::new("/")).is_err());
    }

    #[test]
    fn no_fault_quotes_the_file() {
        let text = "hunter2\nhunter2:x\nhttp://hunter2\nhunter2!:80\nunix:\n\
                    a:1 hunter2\na:2 weight=hunter2\nhunter2:1\nhunter2:1\n";
        let faults = read(text).unwrap_err();
        assert_eq!(faults.len(), 8, "{faults:?}");
        assert!(
            faults.iter().all(|f| !f.1.contains("hunter2")),
            "{faults:?}"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\n\t#=é]{0,200}") {
            let _ = read(&text);
        }
    }
}
