//! MSI-X beside a model of it: what the table shows, what is pending, what was delivered, and by which message.

use std::sync::{Arc, Mutex};

use devices::pci::msix::{
    CONTROL_ENABLE, CONTROL_MASK_ALL, ENTRY_SIZE, Msix, MsixMessage, MsixSink, VECTORS_MAX,
};

use crate::Input;

/// Steps of one input at most.
const STEPS_MAX: usize = 256;

/// What the sink knows of one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The message, once the vector was unmasked.
    route: MsixMessage,
    delivered: u64,
}

/// Remembers routes and deliveries.
struct Sink(Mutex<Vec<(Seen, bool)>>);

impl MsixSink for Sink {
    fn route(&self, vector: u16, message: MsixMessage, masked: bool) {
        let (seen, open) = &mut self.0.lock().expect("no panic goes on")[usize::from(vector)];
        *open = !masked;
        if !masked {
            seen.route = message;
        }
    }

    fn trigger(&self, vector: u16) {
        let (seen, open) = &mut self.0.lock().expect("no panic goes on")[usize::from(vector)];
        assert!(*open, "a masked vector was delivered");
        seen.delivered += 1;
    }
}

/// One vector as the standard has it.
#[derive(Clone, Copy, Default)]
struct Vector {
    words: [u32; 4],
    pending: bool,
    seen: Seen,
}

/// The whole of it.
struct Model {
    control: u16,
    vectors: Vec<Vector>,
}

impl Model {
    fn open(&self, vector: &Vector) -> bool {
        self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE && vector.words[3] & 1 == 0
    }

    /// After any change: open vectors have their message, and what was pending for them is delivered.
    fn settle(&mut self) {
        for index in 0..self.vectors.len() {
            let mut vector = self.vectors[index];
            if self.open(&vector) {
                let [low, high, data, _] = vector.words;
                vector.seen.route = MsixMessage { address: u64::from(high) << 32 | u64::from(low), data };
                vector.seen.delivered += u64::from(std::mem::take(&mut vector.pending));
            }
            self.vectors[index] = vector;
        }
    }

    fn pending_word(&self, dword: usize) -> u32 {
        let bits = self.vectors.iter().skip(dword.saturating_mul(32)).take(32).enumerate();
        bits.fold(0, |all, (bit, vector)| all | u32::from(vector.pending) << bit)
    }
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let vectors = match input.byte() {
        0 => VECTORS_MAX,
        n => u16::from(n % 40) + 1,
    };
    let table_bytes = ENTRY_SIZE * u64::from(vectors);
    let sink = Arc::new(Sink(Mutex::new(vec![<(Seen, bool)>::default(); usize::from(vectors)])));
    let msix = Msix::new(vectors, Arc::clone(&sink) as Arc<dyn MsixSink>);
    let blank = Vector { words: [0, 0, 0, 1], ..Vector::default() };
    let mut model = Model { control: 0, vectors: vec![blank; usize::from(vectors)] };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        // Mostly an aligned access to the table, else any.
        let width = if choice & 0x80 == 0 { 4 << (choice >> 6 & 1) } else { input.width() };
        let offset = match choice >> 4 & 3 {
            0 => input.qword(),
            _ => u64::from(input.word()) % (table_bytes + 16) / width as u64 * width as u64,
        };
        let allowed = matches!(width, 4 | 8) && offset.is_multiple_of(width as u64);
        match choice & 7 {
            0 | 1 => {
                let data = input.take::<8>();
                msix.write_table(offset, &data[..width]);
                if allowed && offset < table_bytes {
                    for (at, word) in (offset / 4..).zip(data[..width].chunks_exact(4)) {
                        let value = u32::from_le_bytes(word.try_into().expect("four bytes"));
                        let at = usize::try_from(at).expect("in the table");
                        model.vectors[at / 4].words[at % 4] = if at % 4 == 3 { value & 1 } else { value };
                    }
                }
            }
            2 => {
                let control = input.word() & (CONTROL_ENABLE | CONTROL_MASK_ALL);
                msix.set_control(control);
                model.control = control;
            }
            3 | 4 => {
                let vector = input.word() % (vectors + 1);
                msix.trigger(vector);
                if let Some(vector) = model.vectors.get_mut(usize::from(vector)) {
                    vector.pending = true;
                }
            }
            5 => {
                msix.forget_pending();
                model.vectors.iter_mut().for_each(|vector| vector.pending = false);
            }
            6 => {
                let mut bytes = [0xa5; 8];
                msix.read_pending(offset, &mut bytes[..width]);
                for (at, word) in bytes[..width].chunks(4).enumerate() {
                    let at = usize::try_from(offset / 4).expect("64 bits") + at;
                    let expected = if allowed { model.pending_word(at) } else { 0 };
                    assert_eq!(word, &expected.to_le_bytes()[..word.len()], "pending bits at {offset:#x}");
                }
            }
            _ if choice & 8 != 0 => {
                msix.reset();
                model.control = 0;
                let blank = |vector: &Vector| Vector { seen: vector.seen, ..blank };
                model.vectors.iter_mut().for_each(|vector| *vector = blank(vector));
            }
            _ => {
                let mut bytes = [0xa5; 8];
                msix.read_table(offset, &mut bytes[..width]);
                for (at, word) in bytes[..width].chunks(4).enumerate() {
                    let at = usize::try_from(offset / 4).expect("64 bits") + at;
                    let vector = model.vectors.get(at / 4).filter(|_| allowed);
                    let expected = vector.map_or(0, |vector| vector.words[at % 4]);
                    assert_eq!(word, &expected.to_le_bytes()[..word.len()], "the table at {offset:#x}");
                }
            }
        }
        model.settle();
        assert_eq!(msix.enabled(), model.control & CONTROL_ENABLE != 0);
        for (vector, (seen, open)) in model.vectors.iter().zip(&*sink.0.lock().expect("no panic goes on")) {
            assert_eq!((vector.seen, model.open(vector)), (*seen, *open));
        }
    }
}
