//! Turns a row of a source into an item: the picture to send, and the JSON object to which `embed` adds
//! its fields.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
};

use url::Url;

use super::json_object::{self, Member};

/// The fields that may contain the path or URL, in the order in which they are tried.
pub(super) const USUAL_FIELDS: [&str; 11] = [
    "image_url",
    "picture_url",
    "photo_url",
    "image",
    "picture",
    "photo",
    "url",
    "image_path",
    "path",
    "file",
    "filename",
];

/// The fields that `embed` adds to a row, in this order. The vector is last, so that a later run need
/// not parse it.
pub(super) const ADDED_FIELDS: [&str; 6] =
    ["sha256", "model", "prepared", "width", "height", "vector"];

/// The field that `embed` adds to a row that has failed.
pub(super) const ERROR_FIELD: &str = "error";

/// The error code if a source's row already has one of the fields that `embed` adds.
pub(super) const NAME_TAKEN: &str = "name_taken";

/// A hash of the text that identifies a row: of the field that `--id` names, else of the path or URL, else
/// of the whole object. With only hashes, a million rows need little memory. `Lanes` also counts the
/// failures of hosts by this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity(u64);

impl Identity {
    /// The identity of a row with this id, path, URL or object, or of a host with this name and port.
    pub(super) fn of(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Where a picture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Picture {
    /// In a file of this machine.
    File(PathBuf),
    /// At a URL, which the service fetches.
    Url {
        /// The URL as written in the source.
        url: String,
        /// The URL's host and port, or empty if the URL is invalid.
        host: String,
    },
}

impl Picture {
    /// Parses text as a URL if it begins with `http://` or `https://`, and otherwise as a path.
    pub(super) fn parse(text: &str) -> Self {
        let scheme = text.trim().split_once("://").map_or("", |(scheme, _)| scheme);
        if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            let text = text.trim();
            let parsed = Url::parse(text).ok();
            let host = parsed.as_ref().and_then(|url| {
                Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
            });
            Self::Url { url: text.to_owned(), host: host.unwrap_or_default() }
        } else {
            Self::File(text.into())
        }
    }
}

/// Why a picture has no vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// A stable name: an error code of the service, or one that `bulk` defines.
    pub code: String,
    /// A sentence for people.
    pub detail: String,
    /// Whether the same picture may succeed in a later run.
    pub may_succeed_later: bool,
}

impl Failure {
    /// A failure that every later run repeats, as long as the source stays the same.
    pub(super) fn permanent(code: &str, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into(), may_succeed_later: false }
    }
}

/// A row of a source: the picture to send, or why there is none.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// The row as the text of a JSON object in one line.
    pub object: String,
    pub identity: Identity,
    /// The path or URL, or the place of the row in its list, for people.
    pub label: String,
    /// The picture, or why the row has none.
    pub picture: Result<Picture, Failure>,
}

/// Turns rows into items, by the names of their fields. Its callers read the sources.
#[derive(Debug, Clone)]
pub(super) struct ItemReader {
    /// The field with the path or URL. With `None`, the usual names are tried.
    pub location_field: Option<String>,
    /// The field that identifies a row. With `None`, or in a row without this field, see [`Identity`].
    pub id_field: Option<String>,
    /// The beginning of the added fields' names.
    pub prefix: String,
}

impl ItemReader {
    /// An item for a path or URL that is not in an object: from a folder, a `.txt` list or an argument.
    pub(super) fn plain(&self, picture: Picture) -> Item {
        let (name, text) = match &picture {
            Picture::Url { url, .. } => ("url", url.clone()),
            Picture::File(path) => ("path", path.to_string_lossy().into_owned()),
        };
        let is_unicode = !matches!(&picture, Picture::File(path) if path.to_str().is_none());
        let picture = if is_unicode {
            Ok(picture)
        } else {
            let detail =
                "The file's name is not UTF-8, so JSON cannot contain it: rename the file.";
            Err(Failure::permanent("invalid_name", detail))
        };
        Item {
            object: format!("{{\"{name}\":{}}}", json_object::string(&text)),
            identity: Identity::of(&text),
            label: text,
            picture,
        }
    }

    /// An item for a part of a source that cannot be read: a folder, or a row of a list. `place` is the
    /// folder or the list. `line` is the row's line, or its number in a `.json` list.
    pub(super) fn unreadable(&self, place: &str, line: Option<u64>, detail: String) -> Item {
        let line_member = line.map(|line| format!(",\"line\":{line}")).unwrap_or_default();
        let object = format!("{{\"source\":{}{line_member}}}", json_object::string(place));
        let label = line.map_or(place.to_owned(), |line| format!("{place}, line {line}"));
        let picture = Err(Failure::permanent("invalid_row", detail));
        Item { identity: Identity::of(&object), object, label, picture }
    }

    /// An item for one JSON object of a list, given as text. `place` is the list. `line` is the object's
    /// line, or its number in a `.json` list.
    pub(super) fn object(&self, text: &str, place: &str, line: u64) -> Item {
        let text = json_object::on_one_line(text.trim());
        let all_members = match json_object::members(&text) {
            Ok(members) => members,
            Err(error) => {
                let detail = format!("This is not a JSON object: {error}.");
                return self.unreadable(place, Some(line), detail);
            }
        };
        // The list may be the file of failures of an earlier run, whose rows end with an error.
        let members = self.without_error(&all_members);
        let object = if members.len() == all_members.len() {
            text.clone().into_owned()
        } else {
            json_object::cut_after(&text, members)
        };
        let location = self.location(members);
        let picture = match (&location, self.taken_name(members)) {
            (_, Some(name)) => {
                let detail = format!("The row already has the field {name}: set --prefix.");
                Err(Failure::permanent(NAME_TAKEN, detail))
            }
            (Some(location), None) => Ok(Picture::parse(location)),
            (None, None) => Err(Failure::permanent("no_picture", self.no_location_message())),
        };
        let identity = self.identity(members, location.as_deref(), &object);
        let label = location.unwrap_or_else(|| format!("{place}, line {line}"));
        Item { object, identity, label, picture }
    }

    /// All members, except the last one if it is the error of an earlier run.
    fn without_error<'m, 'a>(&self, members: &'m [Member<'a>]) -> &'m [Member<'a>] {
        let Some(((name, value), others)) = members.split_last() else { return members };
        let is_error = *name == self.prefixed_name(ERROR_FIELD)
            && json_object::members(value.get()).is_ok_and(|members| {
                members.iter().map(|(name, _)| &**name).eq(["code", "detail", "retryable"])
            });
        if is_error { others } else { members }
    }

    /// The name of an added field that the row already has, if there is one.
    fn taken_name(&self, members: &[Member<'_>]) -> Option<String> {
        let added = ADDED_FIELDS.iter().chain([&ERROR_FIELD]).map(|name| self.prefixed_name(name));
        added.into_iter().find(|added| members.iter().any(|(name, _)| name == added))
    }

    /// The name of an added field in the output, with the prefix.
    pub(super) fn prefixed_name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn no_location_message(&self) -> String {
        match &self.location_field {
            Some(field) => format!("The row has no text in the field {field}."),
            None => "The row has no field with a usual name for a path or URL: set --field.".into(),
        }
    }

    /// The identity of a row of a source or of the output. `members` are the row's members without those
    /// that `embed` has added. `object` is the JSON object with these members, as text.
    pub(super) fn identity(
        &self,
        members: &[Member<'_>],
        location: Option<&str>,
        object: &str,
    ) -> Identity {
        let id = self.id_field.as_ref().and_then(|id| json_object::field(members, id));
        match (id, location) {
            (Some(id), _) => Identity::of(id.get()),
            (None, Some(location)) => Identity::of(location),
            (None, None) => Identity::of(object),
        }
    }

    /// The path or URL of a row, or `None` if no field contains one.
    pub(super) fn location(&self, members: &[Member<'_>]) -> Option<String> {
        let text_of = |field_path: &str| {
            let text = json_object::as_string(json_object::field(members, field_path)?)?;
            if text.trim().is_empty() { None } else { Some(text) }
        };
        match &self.location_field {
            Some(field) => text_of(field),
            None => USUAL_FIELDS.iter().find_map(|name| text_of(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> ItemReader {
        ItemReader { location_field: None, id_field: None, prefix: String::new() }
    }

    fn read(text: &str) -> Item {
        reader().object(text, "list.jsonl", 7)
    }

    #[test]
    fn the_text_of_a_row_is_unchanged() {
        for text in [
            r#"{"url": "https://a.example/x.jpg", "n": 1.50, "e":1E5, "t": "\u00e9\/"}"#,
            r#"{"path":"a.jpg","nested": {"a": [1 , 2]} }"#,
            r#"{ }"#,
        ] {
            assert_eq!(read(text).object, text);
        }
    }

    #[test]
    fn the_error_of_an_earlier_run_is_removed_but_an_error_field_of_the_source_stays() {
        let row = r#"{"path": "a.jpg", "n": 1.0}"#;
        let error = r#""error":{"code":"x","detail":"y","retryable":true}"#;
        assert_eq!(read(&json_object::append(row, error)).object, row);
        assert_eq!(read(&json_object::append("{}", error)).object, "{}");
        let source_row = r#"{"path": "a.jpg", "error": "none"}"#;
        assert_eq!(read(source_row).object, source_row);
        assert_eq!(read(source_row).picture.unwrap_err().code, NAME_TAKEN);
    }

    #[test]
    fn with_a_prefix_a_row_may_have_fields_with_the_names_of_the_added_fields() {
        let row = r#"{"path": "a.jpg", "vector": 1, "sha256": 2}"#;
        assert_eq!(read(row).picture.unwrap_err().code, NAME_TAKEN);
        let prefixed = ItemReader { prefix: "dino_".into(), ..reader() };
        assert!(prefixed.object(row, "", 1).picture.is_ok());
        assert!(prefixed.object(r#"{"path": "a", "dino_width": 1}"#, "", 1).picture.is_err());
    }

    #[test]
    fn the_identity_is_the_id_or_the_path() {
        let by_id = ItemReader { id_field: Some("person.id".into()), ..reader() };
        let identity = |id: &str, path: &str| {
            let row = format!(r#"{{"person": {{"id": {id}}}, "path": "{path}"}}"#);
            by_id.object(&row, "", 1).identity
        };
        assert_eq!(identity("1", "a"), identity("1", "b"));
        assert_ne!(identity("1", "a"), identity("2", "a"));
        let plain = reader().plain(Picture::parse("a.jpg"));
        assert_eq!(plain.identity, read(&plain.object).identity);
        assert_eq!(plain.identity, read(r#"{"id": 3, "path": "a.jpg"}"#).identity);
    }

    #[test]
    fn text_with_the_scheme_http_or_https_is_a_url_and_other_text_is_a_path() {
        let host = |text: &str| match Picture::parse(text) {
            Picture::Url { host, .. } => Some(host),
            Picture::File(_) => None,
        };
        assert_eq!(host(" HTTPS://A.example/x ").as_deref(), Some("a.example:443"));
        assert_eq!(host("http://[::1]:8/x").as_deref(), Some("[::1]:8"));
        assert_eq!(host("http://").as_deref(), Some(""));
        for path in ["a.jpg", "/a/b", "ftp://a/b", "http:/a", "C:\\a"] {
            assert_eq!(host(path), None, "{path}");
        }
    }

    #[test]
    fn a_row_that_has_no_picture_or_is_no_object_has_a_failure() {
        assert_eq!(
            read(r#"{"name": "a", "image": "", "photo": null}"#).picture.unwrap_err().code,
            "no_picture"
        );
        for text in ["", "[1]", "{", r#"{"a": 1} {"b": 2}"#, "nonsense", "{\"a\": \u{1}}"] {
            let item = read(text);
            assert_eq!(item.picture.unwrap_err().code, "invalid_row", "{text}");
            assert_eq!(item.object, r#"{"source":"list.jsonl","line":7}"#);
        }
    }
}
