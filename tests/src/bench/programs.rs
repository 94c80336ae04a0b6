//! The benchmarks' own kernel programs, loaded.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Array, MapData, ProgramArray},
    programs::{
        ProgramFd, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, Xdp,
        XdpMode,
    },
};

use super::feed::{FRAME_WORDS, Feed};

/// Frames that the source sends in one go.
pub const BATCH: u32 = 64;

const FRAME_BYTES: usize = FRAME_WORDS * 8;

static OBJECT: &[u8] = include_bytes_aligned!(env!("BENCH_BPF_OBJECT"));

/// Words of a record of `FEED`.
const FEED_WORDS: usize = FRAME_WORDS + 3;

/// A hook whose programs can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// XDP.
    Xdp,
    /// TC.
    Tc,
}

impl Hook {
    /// As rows name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// What a run returned.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The last return code.
    pub code: u32,
    /// The last frame; empty unless asked for.
    pub frame: Vec<u8>,
}

/// The loaded programs. They live as long as this value; so does what a target is set to.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
    frame: [u8; FRAME_BYTES],
}

impl Programs {
    /// Loads them.
    pub fn load() -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "the benchmarks' kernel programs were not built; `cargo xtask setup` installs what is missing"
        );
        let mut object = Ebpf::load(OBJECT).context("loading the benchmarks' object")?;
        for (name, program) in object.programs_mut() {
            let loaded = match program {
                aya::programs::Program::Xdp(program) => program.load(),
                aya::programs::Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            loaded.with_context(|| format!("loading program {name}"))?;
        }
        Ok(Self {
            object,
            frame: [0; FRAME_BYTES],
        })
    }

    /// What the programs write into frames from now on.
    pub fn feed(&mut self, feed: &Feed) -> Result<()> {
        let map = self.object.map_mut("FEED").context("no map FEED")?;
        let mut map: Array<&mut MapData, [u64; FEED_WORDS]> = Array::try_from(map)?;
        map.set(0, record(feed), 0).context("writing FEED")?;
        // The kernel looks at the frame, too, before the wrapper has written its own.
        for (chunk, word) in self.frame.as_chunks_mut().0.iter_mut().zip(feed.frame) {
            *chunk = word.to_ne_bytes();
        }
        Ok(())
    }

    /// The program that the wrapper of `hook` runs.
    pub fn aim(&mut self, hook: Hook, target: &ProgramFd) -> Result<()> {
        let name = match hook {
            Hook::Xdp => "XDP_TARGET",
            Hook::Tc => "TC_TARGET",
        };
        let map = self
            .object
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        let mut map: ProgramArray<&mut MapData> = ProgramArray::try_from(map)?;
        map.set(0, target, 0)
            .with_context(|| format!("setting {name}"))
    }

    /// The program that does nothing.
    pub fn empty(&self, hook: Hook) -> Result<ProgramFd> {
        let fd = match hook {
            Hook::Xdp => self.xdp("empty_xdp")?.fd()?.try_clone(),
            Hook::Tc => self.tc("empty_tc")?.fd()?.try_clone(),
        };
        fd.context("duplicating a program's file descriptor")
    }

    /// Runs the wrapper of `hook` `repeat` times, as if the frames had come in at `ifindex` of the
    /// calling thread's network namespace.
    pub fn run(&self, hook: Hook, ifindex: u32, repeat: u32) -> Result<u32> {
        Ok(self.run_into(hook, ifindex, repeat, None)?.return_value)
    }

    /// As [`Programs::run`] once, with the frame that comes out.
    pub fn run_once(&self, hook: Hook, ifindex: u32) -> Result<Outcome> {
        let mut frame = vec![0; FRAME_BYTES * 2];
        let result = self.run_into(hook, ifindex, 1, Some(&mut frame))?;
        frame.truncate(usize::try_from(result.data_size_out).unwrap_or(0));
        Ok(Outcome {
            code: result.return_value,
            frame,
        })
    }

    fn run_into(
        &self,
        hook: Hook,
        ifindex: u32,
        repeat: u32,
        frame_out: Option<&mut [u8]>,
    ) -> Result<TestRunResult> {
        let context = match hook {
            Hook::Xdp => xdp_context(ifindex),
            Hook::Tc => skb_context(ifindex),
        };
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: frame_out,
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        match hook {
            Hook::Xdp => self.xdp("restore_xdp")?.test_run(options),
            Hook::Tc => self.tc("restore_tc")?.test_run(options),
        }
        .with_context(|| format!("running the {} wrapper", hook.name()))
    }

    /// Sends `frames` frames out of `ifindex` of the calling thread's network namespace. What
    /// happens to them up to their end happens within this call, batch by batch.
    pub fn generate(&self, ifindex: u32, frames: u32) -> Result<()> {
        let context = xdp_context(ifindex);
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        self.xdp("generate")?
            .test_run(options)
            .context("running the packet source")?;
        Ok(())
    }

    /// Attaches an XDP program to a device that is down, so that nothing comes in at it. The kernel then knows the
    /// program by heart: otherwise each run enters it into the XDP dispatcher and takes it out
    /// again, and waits for all CPUs both times (`bpf_dispatcher_change_prog`).
    pub fn settle(&mut self, name: &str, device: &str) -> Result<()> {
        let program = self.object.program_mut(name);
        let program = program.with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        program
            .attach(device, XdpMode::Driver)
            .with_context(|| format!("attaching {name} to {device}"))?;
        Ok(())
    }

    /// Attaches the sink to a device of the calling thread's network namespace.
    pub fn attach_sink(&mut self, device: &str) -> Result<()> {
        let program = self.object.program_mut("sink").context("no program sink")?;
        let program: &mut Xdp = program.try_into()?;
        program
            .attach(device, XdpMode::Driver)
            .context("attaching the sink")?;
        Ok(())
    }

    /// Frames that all sinks together have seen.
    pub fn sunk(&self) -> Result<u64> {
        let map = self.object.map("SUNK").context("no map SUNK")?;
        let map: Array<&MapData, u64> = Array::try_from(map)?;
        map.get(&0, 0).context("reading SUNK")
    }

    fn xdp(&self, name: &str) -> Result<&Xdp> {
        let program = self
            .object
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn tc(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self
            .object
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }
}

fn record(feed: &Feed) -> [u64; FEED_WORDS] {
    let pair = |first: u32, second: u32| {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    let mut words = [0; FEED_WORDS];
    let rest = [
        pair(feed.counter, feed.flows),
        pair(feed.order, feed.v6),
        pair(feed.address, feed.pad),
    ];
    for (word, value) in words.iter_mut().zip(feed.frame.into_iter().chain(rest)) {
        *word = value;
    }
    words
}

/// `struct xdp_md` (include/uapi/linux/bpf.h) of a frame from `ifindex`.
fn xdp_context(ifindex: u32) -> Vec<u8> {
    let length = u32::try_from(FRAME_BYTES).unwrap_or(0);
    [0, length, 0, ifindex, 0, 0]
        .iter()
        .flat_map(|field: &u32| field.to_ne_bytes())
        .collect()
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) of a frame from `ifindex`: all zero but
/// `ingress_ifindex` and `ifindex`.
fn skb_context(ifindex: u32) -> Vec<u8> {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = vec![0; 192];
    for at in [INGRESS_IFINDEX, IFINDEX] {
        for (byte, value) in context.iter_mut().skip(at).zip(ifindex.to_ne_bytes()) {
            *byte = value;
        }
    }
    context
}
