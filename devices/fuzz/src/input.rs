//! The bytes that the fuzzer chose, as a source of choices.

/// An input, read front to back; zeros past its end.
pub struct Input<'d>(pub &'d [u8]);

impl<'d> Input<'d> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    /// The next `len` bytes as they are, or those that are left.
    pub fn slice(&mut self, len: usize) -> &'d [u8] {
        let (slice, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        slice
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// A yes or a no, from a whole byte.
    pub fn chance(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// The next two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// The next four bytes.
    pub fn dword(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// The next eight bytes.
    pub fn qword(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// The width of an access: 1, 2, 4 or 8 bytes.
    pub fn width(&mut self) -> usize {
        1 << (self.byte() & 3)
    }
}
