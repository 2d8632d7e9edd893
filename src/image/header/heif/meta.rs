//! Parses the `meta` box of a HEIF file: the items (such as pictures and tiles), their properties,
//! their references to each other, and their locations (ISO/IEC 14496-12, 8.11; ISO/IEC 23008-12).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Size,
    boxes::{Boxes, Child, Fields},
};

/// The maximum number of items. The same limit applies to properties, references, locations, and items
/// with associations, because the decoder searches all of them for each item.
pub(super) const MAX_ENTRIES: usize = 4096;

/// The contents of a `meta` box.
#[derive(Debug, Default)]
pub(super) struct Meta<'a> {
    /// The primary item: the picture that the file shows.
    pub(super) primary: u32,
    /// The data that items store in the `meta` box itself.
    pub(super) idat: &'a [u8],
    /// The kind of each item.
    items: BTreeMap<u32, &'a [u8; 4]>,
    /// The properties of all items: the contents of the `ipco` box.
    properties: Vec<Child<'a>>,
    /// The links from each item to its properties.
    associations: BTreeMap<u32, Vec<Association>>,
    /// The references between items.
    references: Vec<Reference<'a>>,
    /// The location of each item, or `None` if the item is not stored in exactly one piece.
    locations: BTreeMap<u32, Option<Location>>,
}

/// The location of an item's data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    /// 0: `start` is an offset in the file. 1: `start` is an offset in `idat`. 2: `start` is an
    /// offset in the data of another item.
    pub(super) method: u64,
    pub(super) start: u64,
    /// In bytes. Zero means up to the end of the file or of `idat`.
    pub(super) length: u64,
}

/// The link from an item to one of its properties.
#[derive(Debug, Clone, Copy)]
struct Association {
    /// Whether only programs that know the property may show the item.
    is_essential: bool,
    /// The number of the property in the `ipco` box, counted from one. Zero means no property.
    property: u16,
}

/// A reference from one item to one or more other items.
#[derive(Debug)]
struct Reference<'a> {
    kind: &'a [u8; 4],
    from: u32,
    to: Fields<'a>,
    /// Bytes per item ID in `to`.
    id_len: usize,
}

impl Reference<'_> {
    fn to(&self) -> impl Iterator<Item = u32> {
        self.to.0.chunks_exact(self.id_len).filter_map(|bytes| Fields(bytes).number(bytes.len()))
    }
}

impl<'a> Meta<'a> {
    /// Parses the contents of the box. Returns `None` if the box is invalid. Also returns `None` if
    /// a box in `ONCE`, an `ipco` box, an item, or an item's location or list of associations occurs
    /// twice: the decoder and this function might then use different occurrences.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        const ONCE: [&[u8; 4]; 7] = [b"hdlr", b"pitm", b"iinf", b"iref", b"iprp", b"iloc", b"idat"];
        let (mut meta, mut seen, mut primary) = (Self::default(), BTreeSet::new(), None);
        let mut body = Fields(body);
        body.version_and_flags()?;
        for child in Boxes(body) {
            let (name, mut fields) = child?;
            if ONCE.contains(&name) && !seen.insert(name) {
                return None;
            }
            match name {
                b"hdlr" => {
                    let media_kind = fields.0.get(8..12)?;
                    if media_kind != b"pict" {
                        return None;
                    }
                }
                b"pitm" => {
                    let (version, _) = fields.version_and_flags()?;
                    primary = Some(fields.number(if version == 0 { 2 } else { 4 })?);
                }
                b"iinf" => meta.read_items(fields)?,
                b"iref" => meta.read_references(fields)?,
                b"iprp" => meta.read_properties(fields)?,
                b"iloc" => meta.read_locations(fields)?,
                b"idat" => meta.idat = fields.0,
                _ => {}
            }
        }
        meta.primary = primary?;
        Some(meta)
    }

    fn read_items(&mut self, mut fields: Fields<'a>) -> Option<()> {
        let (version, _) = fields.version_and_flags()?;
        let _count = fields.number(if version == 0 { 2 } else { 4 })?;
        for entry in Boxes(fields) {
            let (b"infe", mut fields) = entry? else { continue };
            let item = match fields.version_and_flags()? {
                (2, _) => fields.number(2)?,
                (3, _) => fields.number(4)?,
                _ => return None,
            };
            let _protection = fields.number(2)?;
            if self.items.len() == MAX_ENTRIES || self.items.insert(item, fields.name()?).is_some()
            {
                return None;
            }
        }
        Some(())
    }

    fn read_references(&mut self, mut fields: Fields<'a>) -> Option<()> {
        let (version, _) = fields.version_and_flags()?;
        let id_len = if version == 0 { 2 } else { 4 };
        for entry in Boxes(fields) {
            let (kind, mut fields) = entry?;
            let (from, count) = (fields.number(id_len)?, fields.number(2)?);
            let to = Fields(fields.bytes(usize::try_from(count).ok()? * id_len)?);
            if self.references.len() == MAX_ENTRIES {
                return None;
            }
            self.references.push(Reference { kind, from, to, id_len });
        }
        Some(())
    }

    fn read_properties(&mut self, fields: Fields<'a>) -> Option<()> {
        let mut has_ipco = false;
        for child in Boxes(fields) {
            match child? {
                (b"ipco", _) if has_ipco => return None,
                (b"ipco", fields) => {
                    has_ipco = true;
                    self.properties = Boxes(fields).take(MAX_ENTRIES + 1).collect::<Option<_>>()?;
                    if self.properties.len() > MAX_ENTRIES {
                        return None;
                    }
                }
                (b"ipma", fields) => self.read_associations(fields)?,
                _ => {}
            }
        }
        Some(())
    }

    fn read_associations(&mut self, mut fields: Fields<'a>) -> Option<()> {
        let (version, flags) = fields.version_and_flags()?;
        let id_len = if version == 0 { 2 } else { 4 };
        let (association_len, essential_bit) = if flags & 1 == 1 { (2, 0x8000) } else { (1, 0x80) };
        for _ in 0..fields.number(4)? {
            let (item, count) = (fields.number(id_len)?, fields.number(1)?);
            let mut association = || {
                let value = fields.number(association_len)?;
                let property = u16::try_from(value & !essential_bit).ok()?;
                Some(Association { is_essential: value & essential_bit != 0, property })
            };
            let associations = (0..count).map(|_| association()).collect::<Option<_>>()?;
            if self.associations.len() == MAX_ENTRIES
                || self.associations.insert(item, associations).is_some()
            {
                return None;
            }
        }
        Some(())
    }

    /// The kind of an item.
    pub(super) fn kind(&self, item: u32) -> Option<&'a [u8; 4]> {
        self.items.get(&item).copied()
    }

    /// The properties of an item, in the order of the file. The parts of each tuple are: whether the
    /// property is essential, its name, and its contents.
    pub(super) fn properties(
        &self,
        item: u32,
    ) -> impl Iterator<Item = (bool, &'a [u8; 4], &'a [u8])> {
        let associations = self.associations.get(&item).map_or(&[][..], Vec::as_slice);
        associations.iter().filter_map(|Association { is_essential, property }| {
            let (name, fields) = self.properties.get(usize::from(*property).checked_sub(1)?)?;
            Some((*is_essential, *name, fields.0))
        })
    }

    /// The contents of an item's first property with this name.
    pub(super) fn property(&self, item: u32, name: &[u8; 4]) -> Option<&'a [u8]> {
        let (_, _, body) = self.properties(item).find(|(_, other, _)| *other == name)?;
        Some(body)
    }

    /// The size of an item before it is cropped and turned, or `None` if the size is missing or zero.
    pub(super) fn size(&self, item: u32) -> Option<Size> {
        let mut fields = Fields(self.property(item, b"ispe")?);
        fields.version_and_flags()?;
        let (width, height) = (fields.number(4)?, fields.number(4)?);
        (width > 0 && height > 0).then_some((width, height))
    }

    /// The items that the item `from` refers to. Returns `None` unless `from` has exactly one reference
    /// of this kind. One reference can refer to several items.
    pub(super) fn referenced_items(&self, kind: &[u8; 4], from: u32) -> Option<Vec<u32>> {
        let mut matching = self
            .references
            .iter()
            .filter(|reference| reference.kind == kind && reference.from == from);
        let reference = matching.next()?;
        if matching.next().is_some() {
            return None;
        }
        Some(reference.to().collect())
    }

    /// Each auxiliary item, such as a transparency, and the master items that it belongs to.
    pub(super) fn auxiliaries(&self) -> impl Iterator<Item = (u32, impl Iterator<Item = u32>)> {
        let matching = self.references.iter().filter(|reference| reference.kind == b"auxl");
        matching.map(|reference| (reference.from, reference.to()))
    }

    /// The location of an item, or `None` unless the item is stored in exactly one piece.
    pub(super) fn location(&self, item: u32) -> Option<Location> {
        self.locations.get(&item).copied().flatten()
    }

    /// Whether the item's colours are already multiplied by the transparency in another item.
    pub(super) fn is_premultiplied(&self, item: u32) -> bool {
        let is_prem =
            |reference: &Reference<'_>| reference.kind == b"prem" && reference.from == item;
        self.references.iter().any(is_prem)
    }

    /// Reads the locations of items (ISO/IEC 14496-12, 8.11.3). An item in several pieces (extents) gets
    /// `None`. Only the location of a grid is needed, and a grid in several pieces is refused.
    fn read_locations(&mut self, mut fields: Fields<'a>) -> Option<()> {
        let (version @ 0..=2, _) = fields.version_and_flags()? else { return None };
        // The lengths of the fields of each location, in bytes. Each length is stored in four bits.
        let field_lens = fields.number(2)?;
        let [offset_len, length_len, base_offset_len, index_len] =
            [12, 8, 4, 0].map(|shift| (field_lens >> shift & 0xf) as usize);
        let index_len = if version == 0 { 0 } else { index_len };
        if [offset_len, length_len, base_offset_len, index_len].iter().any(|len| *len > 8) {
            return None;
        }
        let id_len = if version < 2 { 2 } else { 4 };
        let count = fields.number(id_len)?;
        if usize::try_from(count).ok()? > MAX_ENTRIES {
            return None;
        }
        let extent_len = index_len + offset_len + length_len;
        for _ in 0..count {
            let item = fields.number(id_len)?;
            let method = if version == 0 { 0 } else { fields.number_u64(2)? & 0xf };
            let _data_reference = fields.number(2)?;
            let base_offset = fields.number_u64(base_offset_len)?;
            let extent_count = fields.number(2)? as usize;
            let mut extents = Fields(fields.bytes(extent_count * extent_len)?);
            let location = if extent_count == 1 {
                let _index = extents.bytes(index_len)?;
                let start = base_offset.checked_add(extents.number_u64(offset_len)?)?;
                let length = extents.number_u64(length_len)?;
                Some(Location { method, start, length })
            } else {
                None
            };
            if self.locations.insert(item, location).is_some() {
                return None;
            }
        }
        Some(())
    }
}
