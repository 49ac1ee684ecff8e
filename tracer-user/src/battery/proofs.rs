//! Whether the oracle of each scenario has been seen to say both that writes are missed and that they are not: on
//! different kernels (`expected.txt`), or with the test module that breaks soft-dirty (`faults.sh`). Where it has not,
//! `docs/causes.md` says why that cannot be had.

use std::collections::{BTreeMap, BTreeSet};

use super::scenarios;

const EXPECTED: &str = include_str!("expected.txt");
const FAULTS: &str = include_str!("../../../xtask/src/suites/faults.sh");
const CAUSES: &str = include_str!("../../../docs/causes.md");
const HEADING: &str = "| scenarios | always | why no other result can be had |";

/// What an oracle has said: `missed`, `tracked` or `dropped`, by scenario.
type Seen = BTreeMap<String, BTreeSet<&'static str>>;

fn result(word: &str) -> Option<&'static str> {
    ["missed", "tracked", "dropped"]
        .into_iter()
        .find(|result| word.starts_with(result))
}

/// By the kernel matrix. A cell with two results is a race that was met both ways.
fn on_kernels(table: &str) -> Seen {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    let mut rows = rows.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = rows.by_ref().find(|words| !words.is_empty());
    assert_eq!(header.expect("a header")[0], "scenario");
    rows.filter(|words| !words.is_empty())
        .map(|words| {
            let results = words[1..].iter().flat_map(|cell| cell.split('|'));
            (words[0].to_owned(), results.filter_map(result).collect())
        })
        .collect()
}

/// By the module: what its test expects, with the shell's variables put in.
fn with_the_module(script: &str) -> Seen {
    let script = script.replace("\\\n", " ");
    let mut variables = BTreeMap::new();
    let mut seen = Seen::new();
    for line in script.lines() {
        if let Some((name, value)) = line.split_once("=\"")
            && let Some(value) = value.strip_suffix('"')
        {
            variables.insert(format!("${name}"), value.to_owned());
        }
        let mut words = line.split_whitespace();
        if !words
            .next()
            .is_some_and(|word| word.starts_with("expect") && !word.ends_with("()"))
        {
            continue;
        }
        let Some(said) = words.next().and_then(result) else {
            continue;
        };
        for word in words {
            let names = match variables.get(word) {
                Some(names) => names.as_str(),
                None => word,
            };
            for name in names.split_whitespace() {
                seen.entry(name.to_owned()).or_default().insert(said);
            }
        }
    }
    seen
}

/// The rows of the table in the documentation: names, where `*` stands for anything, the result, the reason.
fn excused(text: &str) -> Vec<(Vec<&str>, &str, &str)> {
    let rows = text.lines().skip_while(|line| *line != HEADING).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let [_, names, always, why, _] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("`{line}` is no row");
            };
            let names = names.split(", ").map(|name| name.trim_matches('`'));
            (names.collect(), always, why)
        })
        .collect()
}

fn is_meant(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((first, last)) => {
            name.len() >= first.len() + last.len() && name.starts_with(first) && name.ends_with(last)
        }
    }
}

/// What is wrong with the documentation's table.
fn problems(
    kernels: &Seen,
    module: &Seen,
    excused: &[(Vec<&str>, &str, &str)],
    names: &[&str],
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for &name in names {
        let of = |seen: &Seen| seen.get(name).cloned().unwrap_or_default();
        let said: BTreeSet<_> = of(kernels).union(&of(module)).copied().collect();
        let both = said.contains("missed") && said.len() > 1;
        let rows: Vec<_> = excused
            .iter()
            .flat_map(|(patterns, always, _)| patterns.iter().map(move |pattern| (*pattern, *always)))
            .filter(|(pattern, _)| is_meant(pattern, name))
            .collect();
        match rows[..] {
            [] if both => {}
            [] => problems.push(format!("{name} was only seen as {said:?}, and nobody says why")),
            [(pattern, always)] if !both && said.iter().eq([&always]) => {
                used.insert(pattern);
            }
            _ => problems.push(format!("{name} was seen as {said:?}, the table has {rows:?}")),
        }
    }
    for (patterns, _, why) in excused {
        if why.is_empty() {
            problems.push(format!("no reason for {patterns:?}"));
        }
        let idle = patterns.iter().filter(|pattern| !used.contains(*pattern));
        problems.extend(idle.map(|pattern| format!("{pattern} is in the table for nothing")));
    }
    problems
}

#[test]
fn each_oracle_was_seen_to_say_both_or_the_documentation_says_why_not() {
    let names: Vec<_> = scenarios::all().map(|scenario| scenario.name).collect();
    let (kernels, module) = (on_kernels(EXPECTED), with_the_module(FAULTS));
    for name in kernels.keys().chain(module.keys()) {
        assert!(names.contains(&name.as_str()), "no scenario is called {name}");
    }
    let problems = problems(&kernels, &module, &excused(CAUSES), &names);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_table_that_says_too_little_or_too_much_is_noticed() {
    let kernels = on_kernels(
        "# x\nscenario 1 2\na-1 tracked none\na-2 tracked tracked\nb missed=2 tracked|missed\nc missed -\n",
    );
    let module = with_the_module("all=\"a-1 c\"\nexpect tracked $all \\\n    b\nexpect missed a-2\n");
    let names = ["a-1", "a-2", "b", "c"];
    let table = |row: &'static str| vec![(vec!["a-1"], "tracked", "so"), (vec![row], "missed", "so")];
    let of = |excused: &[(Vec<&str>, &str, &str)]| problems(&kernels, &module, excused, &names);
    assert_eq!(of(&[(vec!["a-1"], "tracked", "so")]), Vec::<String>::new());
    assert_eq!(of(&[]).len(), 1, "a-1 has no reason");
    assert_eq!(
        of(&[(vec!["a-*"], "tracked", "so")]).len(),
        1,
        "a-2 was seen as both"
    );
    assert_eq!(of(&[(vec!["a-1"], "missed", "so")]).len(), 2, "it was tracked");
    assert_eq!(of(&table("d")).len(), 1, "there is no d");
    assert_eq!(of(&table("b")).len(), 2, "b was seen as both");
    assert_eq!(of(&[(vec!["a-1"], "tracked", "")]).len(), 1, "that is no reason");
}
