//! Prints the tables and the goals.

use crate::load::Cost;

/// The measured figures and their goals.
#[derive(Default)]
pub struct Report {
    goals: Vec<(String, f64, f64)>,
    /// The processor time of a small new upload, which the other routes are compared with.
    upload: Option<f64>,
}

impl Report {
    /// Records a figure and its upper limit.
    pub fn goal(&mut self, name: &str, measured: f64, at_most: f64) {
        self.goals.push((name.into(), measured, at_most));
    }

    /// Records the cost of a kind of request, if it has a goal.
    pub fn cost(&mut self, route: &str, picture: &str, kept: &str, cost: &Cost) {
        let all = cost.cpu.all();
        let name = format!("{route}, {picture}, {kept}");
        match (route, picture, kept) {
            ("upload", "34 KB", "fresh") => {
                self.upload = Some(all);
                self.goal(&format!("{name}: user ms"), cost.cpu.user, 0.15);
                self.goal(&format!("{name}: CPU ms"), all, 0.5);
            }
            ("upload", "2 MB", "fresh") => self.goal(&format!("{name}: CPU ms"), all, 6.0),
            ("upload", "34 KB", "again") => {
                self.goal(&format!("{name}: CPU ms"), all, 0.4);
                self.goal(&format!("{name}: calls"), cost.calls, 0.0);
            }
            (_, "34 KB", "fresh") => {
                let at_most = if route == "base64" { 0.05 } else { 0.15 };
                let more = all - self.upload.unwrap_or_default();
                self.goal(&format!("{name}: CPU ms more than the upload"), more, at_most);
            }
            _ => {}
        }
    }

    pub fn print(&self) {
        heading("goals", &[]);
        for (name, measured, at_most) in &self.goals {
            let outcome = if measured <= at_most { "holds" } else { "MISSED" };
            println!("{name:<55} {measured:>9.3} of {at_most:>7.3}  {outcome}");
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
