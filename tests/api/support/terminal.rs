//! A minimal terminal: it shows text as a person would see it. Tests check with it that a progress
//! bar is drawn and removed correctly.

use std::str::Chars;

/// A screen that is `columns` wide and has no limit on its lines, so nothing scrolls out.
pub struct Terminal {
    columns: usize,
    lines: Vec<Vec<char>>,
    /// The row of the cursor.
    row: usize,
    /// The column of the cursor.
    column: usize,
}

impl Terminal {
    pub fn new(columns: usize) -> Self {
        Self { columns, lines: vec![Vec::new()], row: 0, column: 0 }
    }

    /// Shows a program's output. Calls `watch` before each control sequence, and thus also before a line is
    /// cleared.
    pub fn show(&mut self, output: &str, mut watch: impl FnMut(&Self)) {
        let mut chars = output.chars();
        while let Some(c) = chars.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => self.move_to_row(self.row + 1),
                '\u{1b}' => {
                    watch(self);
                    assert_eq!(chars.next(), Some('['), "the program must use CSI sequences only");
                    let sequence = read_sequence(&mut chars);
                    self.control(&sequence);
                }
                c => self.put(c),
            }
        }
    }

    /// All lines, without spaces at their ends and without empty lines at the end.
    pub fn lines(&self) -> Vec<String> {
        let text = |line: &Vec<char>| line.iter().collect::<String>().trim_end().to_owned();
        let mut lines: Vec<_> = self.lines.iter().map(text).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }

    fn control(&mut self, sequence: &str) {
        let (number, command) = sequence.split_at(sequence.len() - 1);
        let count = number.parse().unwrap_or(1);
        match command {
            "A" => self.row -= count, // up
            "B" => self.move_to_row(self.row + count),
            // The program sends only `2K`, which clears the whole line.
            "K" => self.lines[self.row].clear(),
            _ => panic!("the terminal does not know the sequence {sequence:?}"),
        }
    }

    /// Writes a character at the cursor. Like a real terminal, leaves the cursor behind the last column, and
    /// wraps when another character comes.
    fn put(&mut self, c: char) {
        if self.column == self.columns {
            self.column = 0;
            self.move_to_row(self.row + 1);
        }
        let line = &mut self.lines[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = c;
        self.column += 1;
    }

    fn move_to_row(&mut self, row: usize) {
        self.row = row;
        if self.lines.len() <= row {
            self.lines.resize(row + 1, Vec::new());
        }
    }
}

/// The characters of a control sequence, up to and including its first letter.
fn read_sequence(chars: &mut Chars<'_>) -> String {
    let mut sequence = String::new();
    for c in chars {
        sequence.push(c);
        if c.is_ascii_alphabetic() {
            break;
        }
    }
    sequence
}
