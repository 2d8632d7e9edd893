//! Prints tables, and compares figures with their goals.

use crate::load::LoadResult;

/// The figures that have a goal.
#[derive(Default)]
pub struct Report {
    goals: Vec<Goal>,
    /// The processor time of an upload of a new picture of 34 KB, in milliseconds. The processor
    /// times of the other routes are compared with this. `None` if this load was not run; then they
    /// are compared with 0.
    upload_cpu: Option<f64>,
}

/// A figure, and the values that meet the goal.
struct Goal {
    name: String,
    measured: f64,
    limit: Limit,
}

/// The values that meet a goal.
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    /// Adds a figure, and the highest value that meets its goal.
    pub fn goal_at_most(&mut self, name: &str, measured: f64, max: f64) {
        self.goals.push(Goal { name: name.into(), measured, limit: Limit::AtMost(max) });
    }

    /// Adds a figure, and the lowest value that meets its goal.
    pub fn goal_at_least(&mut self, name: &str, measured: f64, min: f64) {
        self.goals.push(Goal { name: name.into(), measured, limit: Limit::AtLeast(min) });
    }

    /// Adds those figures of a load that have a goal. `sent` is `fresh` if each request had a new
    /// picture, or `again` if all had the same picture, from the cache.
    pub fn add_load(&mut self, route: &str, picture: &str, sent: &str, result: &LoadResult) {
        let cpu = result.cpu.total();
        let name = format!("{route}, {picture}, {sent}");
        match (route, picture, sent) {
            ("upload", "34 KB", "fresh") => {
                self.upload_cpu = Some(cpu);
                self.goal_at_most(&format!("{name}: user ms"), result.cpu.user, 0.15);
                self.goal_at_most(&format!("{name}: CPU ms"), cpu, 0.5);
            }
            ("upload", "2 MB", "fresh") => self.goal_at_most(&format!("{name}: CPU ms"), cpu, 6.0),
            ("upload", "34 KB", "again") => {
                self.goal_at_most(&format!("{name}: CPU ms"), cpu, 0.4);
                self.goal_at_most(&format!("{name}: calls"), result.calls, 0.0);
            }
            (_, "34 KB", "fresh") => {
                let max = if route == "base64" { 0.05 } else { 0.15 };
                let difference = cpu - self.upload_cpu.unwrap_or_default();
                self.goal_at_most(&format!("{name}: CPU ms more than the upload"), difference, max);
            }
            _ => {}
        }
    }

    /// Prints every figure with its goal, and whether the figure meets the goal.
    pub fn print(&self) {
        heading("goals", &[]);
        for Goal { name, measured, limit } in &self.goals {
            let (is_met, word, limit) = match limit {
                Limit::AtMost(max) => (measured <= max, "of", max),
                Limit::AtLeast(min) => (measured >= min, "of at least", min),
            };
            let outcome = if is_met { "holds" } else { "MISSED" };
            println!("{name:<55} {measured:>9.3} {word} {limit:>7.3}  {outcome}");
        }
    }
}

/// Prints a table's title and columns.
pub fn heading(title: &str, columns: &[&str]) {
    println!("\n{title}");
    if !columns.is_empty() {
        println!("{}", columns.iter().map(|column| format!("{column:>9}")).collect::<String>());
    }
}

/// Prints a row of a table.
pub fn row(names: &[String], figures: &[f64]) {
    let names: String = names.iter().map(|name| format!("{name:>9}")).collect();
    let figures: String = figures
        .iter()
        .map(|figure| match figure {
            100.0.. => format!("{figure:>9.0}"),
            _ => format!("{figure:>9.3}"),
        })
        .collect();
    println!("{names}{figures}");
}

/// The round whose first figure is the median of all first figures. The number of rounds is odd.
pub fn median<const N: usize>(mut rounds: Vec<[f64; N]>) -> [f64; N] {
    rounds.sort_by(|a, b| a[0].total_cmp(&b[0]));
    rounds[rounds.len() / 2]
}
