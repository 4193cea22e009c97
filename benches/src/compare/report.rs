//! Samples to Markdown: medians, minima, spreads, ratios, goals.
//!
//! A goal is judged by medians and by minima, because disturbance only adds. Where the two disagree
//! the result is `unclear`.

use super::rows::{DISTURBANCE, Goal, Limit, Metric, Row};
use super::run::{Calls, Sample};
use super::targets::{Need, target};
use crate::stats::Summary;
use std::collections::BTreeMap;
use std::fmt::Write;

/// All samples of a row by target, in the row's order.
#[derive(Default)]
pub struct Results {
    pub samples: Vec<(&'static str, Vec<Sample>)>,
    pub calls: BTreeMap<&'static str, Calls>,
    /// What went wrong, by target.
    pub faults: Vec<(&'static str, String)>,
}

/// How far a goal was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reached,
    /// By the medians or by the minima, but not by both.
    Unclear,
    NotReached,
    /// A figure is missing.
    NotMeasured,
}

/// Runs in which the load generator waited for its core for more than this share of the time are
/// reported.
const DISTURBANCE_MAX: f64 = 0.05;

/// The targets that others are compared with, where a row has them.
const BASES: &[(&str, &str)] = &[
    ("pipe", "× pipe"),
    ("splice", "× splice"),
    ("haproxy", "× HAProxy"),
    ("pipe-unix", "× pipe"),
    ("haproxy-unix", "× HAProxy"),
    ("nginx-unix", "× nginx"),
    ("haproxy-tls", "× HAProxy"),
    ("nginx-tls", "× nginx"),
    ("copy-256k", "× copy"),
    ("nginx-file", "× nginx"),
    ("subscriber", "× subscriber"),
];

/// The base of the comparison where a row has none of those.
const OWN_BASE: &[(&str, &str)] = &[("gateway", "× gateway")];

impl Results {
    pub fn summary(&self, target: &str, metric: &str) -> Option<Summary> {
        let (_, samples) = self.samples.iter().find(|(name, _)| *name == target)?;
        Summary::of(
            &samples.iter().filter_map(|sample| sample.get(metric).copied()).collect::<Vec<_>>(),
        )
    }

    /// The section of a row.
    pub fn markdown(&self, row: &Row) -> String {
        let mut out = format!("### {}\n\n`{}`. {}\n\n", row.title, row.id, row.note);
        if let Some(main) = row.metrics.first()
            && self.samples.iter().any(|(_, samples)| !samples.is_empty())
        {
            self.table(row, main, &mut out);
        }
        for goal in row.goals {
            let (verdict, words) = self.judge(goal, row);
            let _ = writeln!(out, "- {words}: **{}**", verdict.word());
        }
        let disturbed = self
            .samples
            .iter()
            .flat_map(|(_, samples)| samples)
            .filter_map(|sample| sample.get(DISTURBANCE));
        let worst = disturbed.copied().fold(0.0, f64::max);
        if row.need == Need::Relay && worst > DISTURBANCE_MAX {
            let _ = writeln!(
                out,
                "- Disturbed: in one run other programs had the load generator's core for {:.0} % of the time.",
                worst * 100.0
            );
        }
        for (target, fault) in &self.faults {
            let _ =
                writeln!(out, "- `{target}` has no figures: {}", fault.trim().replace('\n', " / "));
        }
        out.push('\n');
        self.calls_table(&mut out);
        out
    }

    /// A goal in words, with the figures, and whether it was reached.
    pub fn judge(&self, goal: &Goal, row: &Row) -> (Verdict, String) {
        let metric = row.metrics.iter().find(|metric| metric.key == goal.metric);
        let (title, digits) =
            metric.map_or((goal.metric, 2), |metric| (metric.title, metric.digits));
        let mut words = format!("{title} of `{}` ", goal.who);
        let ours = self.summary(goal.who, goal.metric);
        let (by_median, by_best, got) = match goal.limit {
            Limit::Times(most, of) => {
                let _ = write!(words, "≤ {most} × {}", names(of));
                let theirs = of.iter().filter_map(|name| self.summary(name, goal.metric));
                let theirs = theirs.min_by(|a, b| a.median.total_cmp(&b.median));
                let (Some(ours), Some(theirs)) = (ours, theirs) else {
                    return (Verdict::NotMeasured, words);
                };
                let (median, least) = (ours.median / theirs.median, ours.least / theirs.least);
                (
                    median <= most,
                    least <= most,
                    format!("{median:.2} by medians, {least:.2} by minima"),
                )
            }
            Limit::TimesAtLeast(least, of) => {
                let _ = write!(words, "≥ {least} × `{of}`");
                let (Some(ours), Some(theirs)) = (ours, self.summary(of, goal.metric)) else {
                    return (Verdict::NotMeasured, words);
                };
                let (median, best) = (ours.median / theirs.median, ours.greatest / theirs.greatest);
                (
                    median >= least,
                    best >= least,
                    format!("{median:.2} by medians, {best:.2} at best"),
                )
            }
            Limit::Above(most, of) => {
                let _ = write!(words, "≤ `{of}` + {most}");
                let (Some(ours), Some(theirs)) = (ours, self.summary(of, goal.metric)) else {
                    return (Verdict::NotMeasured, words);
                };
                let (median, least) = (ours.median - theirs.median, ours.least - theirs.least);
                (
                    median <= most,
                    least <= most,
                    format!("{median:+.1} by medians, {least:+.1} by minima"),
                )
            }
            Limit::AtMost(most) => {
                let _ = write!(words, "≤ {most}");
                let Some(ours) = ours else { return (Verdict::NotMeasured, words) };
                let got =
                    format!("{:.digits$} by median, {:.digits$} minimum", ours.median, ours.least);
                (ours.median <= most, ours.least <= most, got)
            }
            Limit::AtLeast(least) => {
                let _ = write!(words, "≥ {least}");
                let Some(ours) = ours else { return (Verdict::NotMeasured, words) };
                let got = format!(
                    "{:.digits$} by median, {:.digits$} at best",
                    ours.median, ours.greatest
                );
                (ours.median >= least, ours.greatest >= least, got)
            }
        };
        let verdict = match (by_median, by_best) {
            (true, true) => Verdict::Reached,
            (false, false) => Verdict::NotReached,
            _ => Verdict::Unclear,
        };
        (verdict, format!("{words} ({got})"))
    }

    fn table(&self, row: &Row, main: &Metric, out: &mut String) {
        let among = |bases: &'static [(&str, &str)]| -> Vec<_> {
            bases.iter().filter(|(name, _)| self.summary(name, main.key).is_some()).collect()
        };
        let bases =
            Some(among(BASES)).filter(|bases| !bases.is_empty()).unwrap_or_else(|| among(OWN_BASE));
        let mut head = format!("| target | {}: median | minimum | spread |", main.title);
        for (_, title) in &bases {
            let _ = write!(head, " {title} |");
        }
        for metric in &row.metrics[1..] {
            let _ = write!(head, " {} |", metric.title);
        }
        let columns = head.matches('|').count() - 1;
        let _ = writeln!(out, "{head}\n|{}", " --- |".repeat(columns));
        for (name, _) in &self.samples {
            let Some(summary) = self.summary(name, main.key) else { continue };
            let digits = main.digits;
            let _ = write!(
                out,
                "| {} | {:.digits$} | {:.digits$} | {:.0} % |",
                target(name).map_or(*name, |target| target.title),
                summary.median,
                summary.least,
                summary.spread() * 100.0
            );
            for (base, _) in &bases {
                let base = self.summary(base, main.key).map_or(f64::NAN, |base| base.median);
                let _ = write!(out, " {:.2} |", summary.median / base);
            }
            for metric in &row.metrics[1..] {
                match self.summary(name, metric.key) {
                    Some(summary) => {
                        let _ = write!(out, " {:.*} |", metric.digits, summary.median);
                    }
                    None => out.push_str(" – |"),
                }
            }
            out.push('\n');
        }
        out.push('\n');
    }

    fn calls_table(&self, out: &mut String) {
        let Some(calls) = self.calls.values().next() else { return };
        let _ = writeln!(out, "| target | calls per {} | which |\n| --- | --- | --- |", calls.unit);
        for (name, _) in &self.samples {
            let Some(calls) = self.calls.get(name) else { continue };
            let total: u64 = calls.by_name.values().sum();
            let mut by_count: Vec<_> = calls.by_name.iter().collect();
            by_count.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
            let which: Vec<String> = by_count
                .iter()
                .filter(|(_, count)| **count as f64 >= total as f64 * 0.005)
                .map(|(name, count)| format!("{name} {:.2}", **count as f64 / calls.units))
                .collect();
            let title = target(name).map_or(*name, |target| target.title);
            let _ = writeln!(
                out,
                "| {title} | {:.2} | {} |",
                total as f64 / calls.units,
                which.join(", ")
            );
        }
        out.push('\n');
    }
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Reached => "reached",
            Verdict::Unclear => "unclear",
            Verdict::NotReached => "not reached",
            Verdict::NotMeasured => "not measured",
        }
    }
}

/// All goals of a run at a glance.
pub fn goals(all: &[(&Row, Results)]) -> String {
    let mut out = String::from("## Goals\n\n| row | goal | |\n| --- | --- | --- |\n");
    for (row, results) in all {
        for goal in row.goals {
            let (verdict, words) = results.judge(goal, row);
            let _ = writeln!(out, "| `{}` | {words} | {} |", row.id, verdict.word());
        }
    }
    out.push('\n');
    out
}

fn names(of: &[&str]) -> String {
    match of {
        [one] => format!("`{one}`"),
        many => format!("the best of `{}`", many.join("`, `")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    fn results(figures: &[(&'static str, &[f64])]) -> Results {
        let samples = figures
            .iter()
            .map(|(name, figures)| {
                (*name, figures.iter().map(|&cpu| Sample::from([("cpu", cpu)])).collect())
            })
            .collect();
        Results { samples, ..Results::default() }
    }

    fn judge(results: &Results, limit: Limit) -> Verdict {
        results.judge(&Goal { who: "gateway", metric: "cpu", limit }, &ROWS[0]).0
    }

    #[test]
    fn a_goal_is_reached_by_median_and_least_or_not() {
        let results = results(&[("pipe", &[10.0, 11.0, 12.0]), ("gateway", &[10.0, 11.5, 30.0])]);
        assert_eq!(judge(&results, Limit::Times(1.05, &["pipe"])), Verdict::Reached);
        assert_eq!(judge(&results, Limit::Times(1.02, &["pipe"])), Verdict::Unclear);
        assert_eq!(judge(&results, Limit::Times(0.95, &["pipe"])), Verdict::NotReached);
        assert_eq!(judge(&results, Limit::Times(1.0, &["haproxy"])), Verdict::NotMeasured);
        assert_eq!(judge(&results, Limit::Above(0.4, "pipe")), Verdict::Unclear);
        assert_eq!(judge(&results, Limit::Above(0.5, "pipe")), Verdict::Reached);
        assert_eq!(judge(&results, Limit::TimesAtLeast(1.0, "pipe")), Verdict::Reached);
        assert_eq!(judge(&results, Limit::TimesAtLeast(2.0, "pipe")), Verdict::Unclear);
        assert_eq!(judge(&results, Limit::TimesAtLeast(3.0, "pipe")), Verdict::NotReached);
        assert_eq!(judge(&results, Limit::TimesAtLeast(1.0, "haproxy")), Verdict::NotMeasured);
        assert_eq!(judge(&results, Limit::AtMost(9.0)), Verdict::NotReached);
        assert_eq!(judge(&results, Limit::AtLeast(11.5)), Verdict::Reached);
        assert_eq!(judge(&results, Limit::AtLeast(12.0)), Verdict::Unclear);
    }

    #[test]
    fn the_best_of_several_is_the_base() {
        let results = results(&[("copy-64k", &[4.0]), ("copy-256k", &[2.0]), ("gateway", &[1.2])]);
        assert_eq!(
            judge(&results, Limit::Times(0.6, &["copy-64k", "copy-256k"])),
            Verdict::Reached
        );
        assert_eq!(
            judge(&results, Limit::Times(0.5, &["copy-64k", "copy-256k"])),
            Verdict::NotReached
        );
    }

    #[test]
    fn the_gateway_is_the_base_where_there_is_no_other() {
        let row = ROWS.iter().find(|row| row.id == "side-by-side").unwrap();
        let markdown =
            results(&[("gateway", &[10.0, 12.0]), ("gateway-two", &[11.0, 11.0])]).markdown(row);
        assert!(markdown.contains("| spread | × gateway |"), "{markdown}");
        assert!(markdown.contains("| 11.00 | 11.00 | 0 % | 1.00 | – |"), "{markdown}");
        let beside_a_floor = results(&[("pipe", &[10.0]), ("gateway", &[10.0])]).markdown(&ROWS[0]);
        assert!(!beside_a_floor.contains("× gateway"), "{beside_a_floor}");
    }

    #[test]
    fn tables_have_as_many_cells_as_heads_and_name_faults() {
        let mut results = results(&[
            ("pipe", &[10.0, 12.0]),
            ("haproxy", &[20.0, 22.0]),
            ("gateway", &[11.0, 11.0]),
        ]);
        results.faults.push(("nginx", "it\nbroke".into()));
        let markdown = results.markdown(&ROWS[0]);
        let cells: Vec<usize> = markdown
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(cells.len(), 5, "{markdown}");
        assert!(cells.iter().all(|&count| count == cells[0]), "{markdown}");
        assert!(markdown.contains("| 11.00 | 10.00 | 18 % | 1.00 | 0.52 |"), "{markdown}");
        assert!(markdown.contains("`nginx` has no figures: it / broke"), "{markdown}");
        assert!(goals(&[(&ROWS[0], results)]).contains("| reached |"));
    }
}
