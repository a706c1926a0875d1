//! What can be wrong with a tree, and with what is to be put into it.

/// Why a blob was not read as a device tree. Offsets are bytes from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// There are fewer bytes than a header has.
    #[error(
        "{size_bytes} bytes are too few for a device tree, whose header alone has 40: the file is \
             empty or truncated"
    )]
    TooShort {
        /// How many there are.
        size_bytes: usize,
    },
    /// The magic number is missing.
    #[error(
        "the blob begins with {magic:#010x}, not with 0xd00dfeed: not a flattened device tree \
             (sources are compiled with: dtc -I dts -O dtb)"
    )]
    Magic {
        /// What it begins with.
        magic: u32,
    },
    /// The version is not the one in use since 2007.
    #[error(
        "the tree has version {version}, compatible back to {last_compatible}; 17 is needed: \
             convert it with: dtc -I dtb -O dtb -V 17"
    )]
    Version {
        /// `version` in the header.
        version: u32,
        /// `last_comp_version` in the header.
        last_compatible: u32,
    },
    /// The header states more bytes than there are, or fewer than a header.
    #[error(
        "the tree's header states {total_bytes} bytes, but there are {size_bytes}: the file is \
             truncated or damaged"
    )]
    TotalSize {
        /// `totalsize` in the header.
        total_bytes: u32,
        /// How many there are.
        size_bytes: usize,
    },
    /// The tree is larger than a kernel accepts.
    #[error(
        "the tree has {total_bytes} bytes, more than the {limit_bytes} that an arm64 kernel accepts"
    )]
    TooLarge {
        /// `totalsize` in the header.
        total_bytes: u32,
        /// [`MAX_DTB_BYTES`](crate::MAX_DTB_BYTES).
        limit_bytes: usize,
    },
    /// A block lies outside of the blob or is not aligned.
    #[error(
        "the tree's {block} block at {offset:#x} with {block_bytes:#x} bytes lies outside of the \
             blob, or is not aligned: the file is damaged"
    )]
    Block {
        /// Which of the three.
        block: &'static str,
        /// Where it begins.
        offset: u32,
        /// How long it is.
        block_bytes: u32,
    },
    /// Something else than expected stands in the structure or a block ends early.
    #[error("the tree is malformed at {offset:#x}: {what}")]
    Malformed {
        /// Where.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Two nodes, or two properties, of one parent have the same name.
    #[error(
        "the tree has two {what} called {name:?} in one node, at {offset:#x}: which of them counts \
             would be a guess"
    )]
    Duplicate {
        /// Where the second one is.
        offset: usize,
        /// Nodes or properties.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Over a limit of this crate.
    #[error("the tree has more than {limit} {what} (at {offset:#x}): no real one does")]
    Limit {
        /// Where the limit was passed.
        offset: usize,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// Why the next kernel's tree could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A crash kernel's memory cannot be written as the root of the tree counts cells.
    #[error(
        "{range} for the crash kernel does not fit into {address_cells} cells of address and {size_cells} of size, \
         as the root of the device tree has them; reserve it below 4 GiB, with crashkernel=SIZE@ADDRESS"
    )]
    CrashRange {
        /// The memory.
        range: kleap_memmap::PhysRange,
        /// `#address-cells` of the root.
        address_cells: u32,
        /// `#size-cells` of the root.
        size_cells: u32,
    },
    /// The finished tree is larger than a kernel accepts.
    #[error(
        "the next kernel's device tree would have {size_bytes} bytes, more than the {limit_bytes} \
             that an arm64 kernel accepts"
    )]
    TooLarge {
        /// How many it would have.
        size_bytes: usize,
        /// [`MAX_DTB_BYTES`](crate::MAX_DTB_BYTES).
        limit_bytes: usize,
    },
    /// The command line is longer than the kernel's buffer.
    #[error(
        "the command line has {size_bytes} bytes; an arm64 kernel takes at most {limit_bytes} and \
             would cut off the rest: shorten it"
    )]
    BootargsTooLong {
        /// How many it has.
        size_bytes: usize,
        /// [`MAX_BOOTARGS_BYTES`](crate::MAX_BOOTARGS_BYTES).
        limit_bytes: usize,
    },
    /// The command line contains a NUL byte, which would end it.
    #[error(
        "the command line has a NUL byte at position {position}, where the kernel would stop reading"
    )]
    BootargsNul {
        /// Bytes before it.
        position: usize,
    },
    /// The initrd has no bytes.
    #[error("the initrd at {address} is empty; leave it out instead")]
    InitrdEmpty {
        /// Where it would be.
        address: kleap_memmap::PhysAddr,
    },
    /// The timeline is too large to be a property.
    #[error("a timeline of {size_bytes} bytes was asked for; {limit_bytes} is the most")]
    TimelineTooLarge {
        /// How many bytes.
        size_bytes: usize,
        /// [`MAX_TIMELINE_BYTES`](crate::MAX_TIMELINE_BYTES).
        limit_bytes: usize,
    },
    /// The seed is too large to be a property.
    #[error(
        "an rng-seed of {size_bytes} bytes was given; {limit_bytes} is the most that is of use"
    )]
    RngSeedTooLarge {
        /// How many bytes.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// Why something that the tree describes cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HardwareError {
    /// `stdout-path` names nothing.
    #[error("/chosen/stdout-path is {path:?}, which is neither a node nor an alias of one")]
    StdoutPath {
        /// The path or alias, without options.
        path: String,
    },
    /// The console is of a kind that is not known here.
    #[error("the console {path} is {compatible:?}, no UART that is known here")]
    UnknownUart {
        /// The node.
        path: String,
        /// Its `compatible` list.
        compatible: Vec<String>,
    },
    /// A register's address cannot be computed.
    #[error("the registers of {path} have no address that the CPU can use: {what}")]
    Address {
        /// The node.
        path: String,
        /// Why not.
        what: &'static str,
    },
    /// A property has another form than its binding says.
    #[error("the property {property} of {path} is not as its binding says: {what}")]
    Property {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}
