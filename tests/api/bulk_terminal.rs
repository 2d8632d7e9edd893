//! `imagesvc embed`: what a person sees on a terminal.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{
    Bulk, FakeNvidia, Finished, Reply, ServiceProcess, Terminal, embedding, is_missing,
};

/// Runs `imagesvc embed` on a terminal of this width, with util-linux's `script`. Returns what the terminal
/// received. The last line contains the exit code of `embed`; `script` itself exits with that of `echo`.
fn run_on_terminal(bulk: &Bulk, columns: usize, arguments: &str) -> String {
    let program = ServiceProcess::PROGRAM;
    let commands = format!("'{program}' embed {arguments}; echo \"exit code $?\"");
    let mut script = terminal_command(bulk, columns, &commands);
    let run = Finished::from(script.spawn().unwrap()).expect_exit_code(0);
    run.stdout
}

/// A command that runs shell commands on a terminal of this width.
fn terminal_command(bulk: &Bulk, columns: usize, commands: &str) -> Command {
    let shell = format!("stty cols {columns} rows 24 && {commands}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &shell, "/dev/null"]);
    let command = bulk.command(""); // only its environment is used
    script.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("TERM", "xterm");
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.current_dir(bulk.folder()).stdin(Stdio::null()).stdout(Stdio::piped());
    script.stderr(Stdio::piped());
    script
}

/// Runs `imagesvc embed` on a terminal of this width, and presses Ctrl-C when the bar is drawn. Returns what
/// the terminal received. Asserts that the exit code is 130, that of an interruption.
fn interrupt_on_terminal(bulk: &Bulk, columns: usize, arguments: &str) -> String {
    let mut script = terminal_command(
        bulk,
        columns,
        &format!("exec '{}' embed {arguments}", ServiceProcess::PROGRAM),
    );
    let mut process = script.stdin(Stdio::piped()).spawn().unwrap();
    let mut keyboard = process.stdin.take().unwrap();
    let mut output = Vec::new();
    let mut screen = process.stdout.take().unwrap();
    let mut is_interrupted = false;
    let mut part = [0; 4096];
    loop {
        let length = screen.read(&mut part).unwrap();
        if length == 0 {
            break;
        }
        output.extend(&part[..length]);
        // The line below the bar contains the speed, for example `6.7 a second`.
        if !is_interrupted && String::from_utf8_lossy(&output).contains(" a second") {
            keyboard.write_all(b"\x03").unwrap();
            is_interrupted = true;
        }
    }
    assert_eq!(process.wait().unwrap().code(), Some(130));
    String::from_utf8(output).unwrap()
}

/// The widths of a narrow and of a wide terminal.
const WIDTHS: [usize; 2] = [40, 160];

/// A fake NVIDIA that needs some time for each picture, so that the bar is drawn several times. `None`
/// if the program that makes a terminal is missing.
async fn slow_nvidia() -> Option<FakeNvidia> {
    if is_missing("script") {
        return None;
    }
    let reply = embedding().after(Duration::from_millis(150));
    Some(FakeNvidia::healthy_except(move |_| Some(reply.clone())).await)
}

/// A folder `photos` with 20 pictures, and with two files that are no pictures. The name of one of
/// these two contains a command that would change the title of a terminal.
fn bulk_with_failures(nvidia: &FakeNvidia) -> Bulk {
    // One call at a time: the 20 calls to a slow NVIDIA take 3 seconds.
    let bulk = Bulk::new(nvidia).setting("NVIDIA_MAX_CONCURRENCY", 1);
    bulk.write_pictures(20);
    bulk.write("photos/\u{1b}]0;title\u{7}.png", "no picture");
    bulk.write("photos/text.jpg", "no picture");
    bulk
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_of_any_width_shows_a_bar_and_at_the_end_only_the_summary() {
    let Some(nvidia) = slow_nvidia().await else { return };
    for columns in WIDTHS {
        let bulk = bulk_with_failures(&nvidia);
        let output = run_on_terminal(&bulk, columns, "photos --out vectors.jsonl");
        let mut terminal = Terminal::new(columns);
        let mut bars = Vec::new();
        terminal.show(&output, |screen| {
            let lines = screen.lines();
            if let [.., bar, details] = &lines[..]
                && bar.starts_with('[')
                && details.contains(" a second")
            {
                bars.push((bar.clone(), details.clone()));
            }
        });
        let has_all_parts =
            |bar: &str| bar.contains("=>") && bar.contains("/22 done, ") && bar.ends_with(" left");
        let found = bars.iter().find(|(bar, _)| has_all_parts(bar));
        let (bar, details) = found.unwrap_or_else(|| panic!("{bars:#?}"));
        assert!(bar.chars().count() <= columns, "{bar}");
        assert!(details.contains(" failed, ") && details.contains(" cached, "), "{details}");

        let lines = terminal.lines();
        // Long lines wrap, perhaps at a space. So texts are compared without spaces.
        let without_spaces = |text: &str| text.replace(' ', "");
        let text = without_spaces(&lines.concat());
        for sentence in [
            "20 embedded (0 cached), 2 failed, in ",
            "2 x unsupported_image, for example photos/",
            "the failures are in vectors.failed.jsonl",
        ] {
            assert!(text.contains(&without_spaces(sentence)), "{sentence}: {lines:#?}");
        }
        assert_eq!(lines.last().unwrap(), "exit code 1");
        // The summary contains "cached)", and only the line below the bar contains "cached,".
        let has_details = text.contains("cached,");
        assert!(!has_details, "the bar must leave nothing behind: {lines:#?}");
        let is_bar = |line: &String| line.starts_with('[') && line.contains("done");
        assert!(!lines.iter().any(is_bar), "the bar must leave nothing behind: {lines:#?}");
        assert!(!output.contains("\u{1b}]"), "a file's name must not control the terminal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ctrl_c_nothing_of_the_bar_stays_on_the_terminal() {
    let Some(nvidia) = slow_nvidia().await else { return };
    for columns in WIDTHS {
        let bulk = bulk_with_failures(&nvidia);
        let output = interrupt_on_terminal(&bulk, columns, "photos --out vectors.jsonl");
        assert!(output.contains("^C"), "the terminal should show the key: {output:?}");
        let mut terminal = Terminal::new(columns);
        terminal.show(&output, |_| {});
        let lines = terminal.lines();
        let text = lines.concat().replace(' ', "");
        assert!(text.contains("interrupted:waitingfor"), "{lines:#?}");
        // The summary does not say that rows are "done".
        let is_bar = |line: &String| line.contains(" done") || line.contains("cached,");
        assert!(!lines.iter().any(is_bar), "the bar must leave nothing behind: {lines:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variable_no_color_and_a_terminal_that_cannot_move_its_cursor_are_respected() {
    let Some(nvidia) = slow_nvidia().await else { return };
    let bulk = bulk_with_failures(&nvidia).setting("NO_COLOR", 1);
    let output = run_on_terminal(&bulk, 80, "photos --out vectors.jsonl");
    assert!(output.contains("=>"), "the bar should be drawn: {output}");
    // A sequence that sets a colour consists of digits and semicolons, and ends with `m`.
    let has_color = output.split("\u{1b}[").skip(1).any(|sequence| {
        sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
    });
    assert!(!has_color, "{output:?}");
    let bulk = bulk_with_failures(&nvidia).setting("TERM", "dumb");
    let output = run_on_terminal(&bulk, 80, "photos --out vectors.jsonl");
    assert!(!output.contains('\u{1b}') && output.contains("20 embedded"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_on_a_terminal_are_not_mixed_with_a_bar() {
    if is_missing("script") {
        return;
    }
    let nvidia = FakeNvidia::healthy_except(|_| {
        Some(Reply::json(200, crate::support::nvidia_api::embedding_body(&short_vector_text())))
    })
    .await;
    let bulk = bulk_with_failures(&nvidia);
    // Without `--out`, the terminal receives the rows and the failures.
    let output = run_on_terminal(&bulk, 80, "photos");
    assert!(!output.contains('\u{1b}'), "{output:.2000}");
    assert_eq!(output.matches("\"vector\":[").count(), 20);
    assert!(output.contains(r#"{"path":"photos/text.jpg","error":{"code":"unsupported_image""#));
    assert!(output.contains(r"\u001b]0;title\u0007.png"), "{output:.2000}");
}

/// The text of a vector whose numbers are short, so that the rows are short.
fn short_vector_text() -> String {
    format!("[{}]", vec!["0.5"; 1536].join(","))
}
