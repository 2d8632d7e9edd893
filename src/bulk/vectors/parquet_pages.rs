//! Checks the sizes that a `.parquet` file declares before memory is allocated for them.

use std::{fs::File, sync::Arc};

use parquet::{
    arrow::{ProjectionMask, arrow_reader::RowGroups},
    basic::{Encoding, Type},
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        serialized_reader::SerializedPageReader,
    },
};

/// The most values in a page: 128 MiB of 32-bit floats. Writers make pages of 1 to 100 MB.
const MAX_PAGE_VALUES: u64 = 32 << 20;

/// The most bytes of a page in a column of texts, and of the column's dictionary. A long text in a
/// dictionary could take many times its length, because each row that refers to it gets a copy.
const MAX_TEXT_PAGE_BYTES: usize = 16 << 20;

/// All row groups of a file. Their metadata has been checked, for the columns that are read.
pub(super) struct CheckedRowGroups {
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    rows: usize,
}

impl CheckedRowGroups {
    /// Checks the columns that `mask` selects.
    ///
    /// # Errors
    /// A column is not within the file, a number of rows or values is negative, the rows are too many to
    /// count, or this program cannot read the compression of a column.
    pub(super) fn new(
        file: File,
        metadata: ParquetMetaData,
        mask: &ProjectionMask,
    ) -> Result<Self> {
        let file_bytes = file.metadata()?.len();
        let file = Arc::new(file);
        let mut rows = 0_usize;
        for row_group in metadata.row_groups() {
            let added = usize::try_from(row_group.num_rows()).ok();
            rows = added.and_then(|added| rows.checked_add(added)).ok_or_else(impossible_sizes)?;
            let columns = row_group.columns().iter().enumerate();
            for (_, column) in columns.filter(|(index, _)| mask.leaf_included(*index)) {
                check_column(column, file_bytes)?;
                check_compression(column, &file)?;
            }
        }
        Ok(Self { file, metadata: Arc::new(metadata), rows })
    }

    /// The number of rows in the file.
    pub(super) fn rows(&self) -> u64 {
        self.rows as u64
    }
}

fn impossible_sizes() -> ParquetError {
    ParquetError::General("its metadata declares impossible sizes".into())
}

/// Checks that a column's pages are within the file, and that its number of values is not negative.
fn check_column(column: &ColumnChunkMetaData, file_bytes: u64) -> Result<()> {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let check = || {
        let end = u64::try_from(start)
            .ok()?
            .checked_add(u64::try_from(column.compressed_size()).ok()?)?;
        (end <= file_bytes && column.num_values() >= 0).then_some(())
    };
    check().ok_or_else(impossible_sizes)
}

/// Checks that this program can read the compression of a column. Creates a page reader, which fails only
/// for a compression that this program cannot read. Reads no page.
fn check_compression(column: &ColumnChunkMetaData, file: &Arc<File>) -> Result<()> {
    let row_count = 0; // needed only for reading pages
    let created = SerializedPageReader::new(Arc::clone(file), column, row_count, None);
    created.map(drop).map_err(|_| {
        let compression = column.compression();
        ParquetError::General(format!(
            "its pages are compressed by {compression}, which this program cannot read: write it \
             without compression"
        ))
    })
}

impl RowGroups for CheckedRowGroups {
    fn num_rows(&self) -> usize {
        self.rows
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let (file, metadata) = (Arc::clone(&self.file), Arc::clone(&self.metadata));
        Ok(Box::new(Chunks { file, metadata, column, row_group: 0 }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.metadata.row_groups().iter())
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// The chunks of a column: its pages in one row group, then in the next, and so on.
struct Chunks {
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    /// The index of the column.
    column: usize,
    /// The index of the next row group.
    row_group: usize,
}

impl Iterator for Chunks {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let row_group = self.metadata.row_groups().get(self.row_group)?;
        self.row_group += 1;
        let column = row_group.column(self.column);
        // `CheckedRowGroups::new` has refused a file for which this conversion fails.
        let rows = usize::try_from(row_group.num_rows()).ok()?;
        let pages = SerializedPageReader::new(Arc::clone(&self.file), column, rows, None);
        let limits = Limits::new(column);
        Some(pages.map(|pages| Box::new(CheckedPages { pages, limits }) as _))
    }
}

impl PageIterator for Chunks {}

/// The pages of a column in one row group. Each page is checked when it is read.
struct CheckedPages {
    pages: SerializedPageReader<File>,
    limits: Limits,
}

/// The limits for the next pages of a column in one row group.
struct Limits {
    /// How many values the column's metadata still allows.
    values_left: u64,
    column_type: Type,
    /// Whether there was a dictionary page. The parquet crate panics if a page needs one and there was none.
    has_dictionary: bool,
}

impl Limits {
    fn new(column: &ColumnChunkMetaData) -> Self {
        let values_left = u64::try_from(column.num_values()).unwrap_or(0);
        Self { values_left, column_type: column.column_type(), has_dictionary: false }
    }

    /// Checks the next page, and counts its values.
    fn check(&mut self, page: &Page) -> Result<()> {
        let (bytes, values) = (page.buffer().len(), u64::from(page.num_values()));
        let is_possible = match page {
            Page::DictionaryPage { .. } => {
                self.has_dictionary = true;
                // Each value takes at least one byte.
                values <= bytes as u64
            }
            Page::DataPage { encoding, .. } | Page::DataPageV2 { encoding, .. } => {
                let left = self.values_left.checked_sub(values);
                self.values_left = left.unwrap_or(0);
                let needs_dictionary =
                    matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY);
                left.is_some()
                    && values <= MAX_PAGE_VALUES
                    && (self.has_dictionary || !needs_dictionary)
            }
        };
        if is_possible && (self.column_type != Type::BYTE_ARRAY || bytes <= MAX_TEXT_PAGE_BYTES) {
            return Ok(());
        }
        let detail =
            format!("a page with {values} values in {bytes} bytes is impossible or too large");
        Err(ParquetError::General(detail))
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.limits.check(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    /// A skipped page is not checked, because it is not read into memory.
    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data page with this many bytes and values.
    fn data(bytes: usize, num_values: u32, encoding: Encoding) -> Page {
        Page::DataPage {
            buf: vec![0; bytes].into(),
            num_values,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        }
    }

    /// A data page that needs no dictionary.
    fn plain(bytes: usize, num_values: u32) -> Page {
        data(bytes, num_values, Encoding::PLAIN)
    }

    /// A dictionary page with this many bytes and values.
    fn dictionary(bytes: usize, num_values: u32) -> Page {
        let buf = vec![0; bytes].into();
        Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false }
    }

    /// Whether these pages are within the limits of a column that declares this many values.
    ///
    /// Some data pages of these tests are too short for their floats: `check` compares values with bytes
    /// only for a dictionary.
    fn are_possible(values_left: u64, column_type: Type, pages: &[Page]) -> bool {
        let mut limits = Limits { values_left, column_type, has_dictionary: false };
        pages.iter().all(|page| limits.check(page).is_ok())
    }

    #[test]
    fn more_values_than_the_column_declares_or_than_max_page_values_are_refused() {
        assert!(are_possible(5, Type::FLOAT, &[plain(8, 3), plain(8, 2)]));
        assert!(!are_possible(5, Type::FLOAT, &[plain(8, 3), plain(8, 3)]));
        let limit = u32::try_from(MAX_PAGE_VALUES).unwrap();
        assert!(are_possible(u64::MAX, Type::FLOAT, &[plain(8, limit)]));
        assert!(!are_possible(u64::MAX, Type::FLOAT, &[plain(8, limit + 1)]));
    }

    #[test]
    fn a_dictionary_cannot_have_more_values_than_bytes() {
        // The values of a dictionary are not counted as values of the column.
        assert!(are_possible(1, Type::FLOAT, &[dictionary(8, 2)]));
        assert!(!are_possible(u64::MAX, Type::FLOAT, &[dictionary(8, 9)]));
        assert!(!are_possible(u64::MAX, Type::BYTE_ARRAY, &[dictionary(8, u32::MAX)]));
    }

    #[test]
    fn a_page_that_needs_a_dictionary_must_follow_one() {
        for encoding in [Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY] {
            assert!(are_possible(5, Type::FLOAT, &[dictionary(8, 2), data(8, 5, encoding)]));
            assert!(!are_possible(5, Type::FLOAT, &[data(8, 5, encoding)]));
        }
    }

    #[test]
    fn the_bytes_of_a_page_are_limited_for_texts_but_not_for_numbers() {
        for pages in [[plain(MAX_TEXT_PAGE_BYTES + 1, 1)], [dictionary(MAX_TEXT_PAGE_BYTES + 1, 1)]]
        {
            assert!(!are_possible(5, Type::BYTE_ARRAY, &pages));
            assert!(are_possible(5, Type::FLOAT, &pages));
        }
        assert!(are_possible(5, Type::BYTE_ARRAY, &[plain(MAX_TEXT_PAGE_BYTES, 1)]));
    }
}
