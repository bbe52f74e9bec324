"""Types of partitions in a GPT (UEFI 2.10; the UAPI Group's "Discoverable Partitions Specification")."""

from uuid import UUID

ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
XBOOTLDR = UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOTS = {
    "x86_64": UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "aarch64": UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
VERITY = {
    "x86_64": UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
    "aarch64": UUID("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
}
READ_ONLY = 1 << 60  # "Partition Flags"
