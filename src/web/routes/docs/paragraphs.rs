//! Joins the lines of each paragraph in the descriptions of the OpenAPI document. Otherwise Swagger UI
//! would show a line break wherever a line of the source ends.

use serde_json::Value;

/// Joins the lines of each paragraph in every `description`.
pub(super) fn join_in_descriptions(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => *text = join(text),
                    _ => join_in_descriptions(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(join_in_descriptions),
        _ => {}
    }
}

/// Joins the lines of each paragraph and list item of a Markdown text. Code blocks stay as they are. After a
/// heading, the text must have an empty line.
fn join(markdown: &str) -> String {
    let mut joined = String::new();
    let mut is_in_code = false;
    let mut ends_in_text = false; // whether the last line can be continued
    for line in markdown.lines() {
        let is_fence = line.starts_with("```");
        let is_text = !is_in_code && !is_fence && !line.is_empty();
        let begins_block = ["- ", "#"].iter().any(|start| line.starts_with(start));
        if ends_in_text && is_text && !begins_block {
            joined.push(' ');
            joined.push_str(line.trim_start());
        } else {
            if !joined.is_empty() {
                joined.push('\n');
            }
            joined.push_str(line);
        }
        is_in_code ^= is_fence;
        ends_in_text = is_text;
    }
    joined
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_of_paragraphs_and_list_items_are_joined_but_not_those_of_code() {
        let markdown = "one\ntwo\n\n- three\n  four\n- five\n\n### six\n\n```js\na\n\n  b\n- c\n```\nseven\neight";
        let expected =
            "one two\n\n- three four\n- five\n\n### six\n\n```js\na\n\n  b\n- c\n```\nseven eight";
        assert_eq!(join(markdown), expected);
    }

    #[test]
    fn descriptions_at_every_depth_change_and_other_texts_do_not() {
        let mut document = json!({
            "title": "a\nb",
            "list": [{ "description": "a\nb" }],
            "description": { "description": "c\nd" },
        });
        join_in_descriptions(&mut document);
        let expected = json!({
            "title": "a\nb",
            "list": [{ "description": "a b" }],
            "description": { "description": "c d" },
        });
        assert_eq!(document, expected);
    }
}
