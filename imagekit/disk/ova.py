"""OVA: a tar of an OVF descriptor, a manifest and a stream-optimised VMDK (DMTF DSP0243, OVF 1.1).

The machine that it describes has what Debian's cloud kernels drive on VMware and VirtualBox: an IDE disk, since they
lack AHCI and LSI Logic, and a vmxnet3 card.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from imagekit.disk import container, tarhead, vmdk
from imagekit.disk.container import File
from imagekit.disk.sparse import CHUNK, SECTOR, Sparse
from imagekit.errors import Problem

DESCRIPTOR, MANIFEST, DISK = "machine.ovf", "machine.mf", vmdk.NAME  # always: what convert writes is what a build does
MAX_MEMBERS = 64
MAX_TEXT = 1 << 20  # bytes of a descriptor that are read
END = bytes(1024)
MEMORY = 512  # MiB, of the machine that is described

OVF = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
 <References>
  <File ovf:id="file1" ovf:href="{disk}" ovf:size="{size}"/>
 </References>
 <DiskSection>
  <Info>The disk of the machine</Info>
  <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{capacity}"
   ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
 </DiskSection>
 <NetworkSection>
  <Info>The network of the machine</Info>
  <Network ovf:name="network"><Description>Any that gives it an address</Description></Network>
 </NetworkSection>
 <VirtualSystem ovf:id="machine">
  <Info>One machine</Info>
  <Name>machine</Name>
  <OperatingSystemSection ovf:id="101"><Info>Linux, 64 bits</Info></OperatingSystemSection>
  <VirtualHardwareSection>
   <Info>What it is made of</Info>
   <System>
    <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
    <vssd:InstanceID>0</vssd:InstanceID>
    <vssd:VirtualSystemIdentifier>machine</vssd:VirtualSystemIdentifier>
    <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
   </System>
{items}
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
"""
ITEMS: tuple[dict[str, str], ...] = (  # ResourceType of CIM: 3 processor, 4 memory, 5 IDE, 10 network, 17 disk
    {"ElementName": "processor", "InstanceID": "1", "ResourceType": "3", "VirtualQuantity": "1"},
    {
        "AllocationUnits": "byte * 2^20",
        "ElementName": "memory",
        "InstanceID": "2",
        "ResourceType": "4",
        "VirtualQuantity": str(MEMORY),
    },
    {"Address": "0", "ElementName": "ide", "InstanceID": "3", "ResourceSubType": "PIIX4", "ResourceType": "5"},
    {
        "AddressOnParent": "0",
        "ElementName": "disk",
        "HostResource": "ovf:/disk/disk1",
        "InstanceID": "4",
        "Parent": "3",
        "ResourceType": "17",
    },
    {
        "AutomaticAllocation": "true",
        "Connection": "network",
        "ElementName": "ethernet",
        "InstanceID": "5",
        "ResourceSubType": "VmxNet3",
        "ResourceType": "10",
    },
)


def chunks(disk: Sparse, *, folder: Path) -> Iterator[bytes]:
    """The archive of this disk; its VMDK is made in a file of `folder` first, since its digest stands before it."""
    from tempfile import TemporaryFile

    with TemporaryFile(dir=folder) as made:
        total = sha256()
        for chunk in vmdk.chunks(disk):
            total.update(chunk)
            made.write(chunk)
        size = made.tell()
        if size > tarhead.MOST:
            raise Problem(f"a VMDK of {size} bytes is too large for an OVA", "write a vmdk")
        yield from _texts(disk, size, total.hexdigest())
        yield tarhead.header(DISK, size)
        made.seek(0)
        while chunk := made.read(CHUNK):
            yield chunk
        yield bytes(-size % tarhead.BLOCK) + END


def _texts(disk: Sparse, size: int, digest: str) -> Iterator[bytes]:
    """Descriptor and manifest, in this order (DSP0243, 6: "OVF package")."""
    items = "\n".join("   <Item>\n" + "".join(map(_field, item.items())) + "   </Item>" for item in ITEMS)
    capacity = container.aligned(disk.size, SECTOR)
    ovf = OVF.format(disk=DISK, size=size, capacity=capacity, items=items).encode()
    manifest = f"SHA256({DESCRIPTOR})= {sha256(ovf).hexdigest()}\nSHA256({DISK})= {digest}\n".encode()
    for name, data in ((DESCRIPTOR, ovf), (MANIFEST, manifest)):
        yield tarhead.header(name, len(data)) + data + bytes(-len(data) % tarhead.BLOCK)


def _field(field: tuple[str, str]) -> str:
    name, value = field
    return f"    <rasd:{name}>{value}</rasd:{name}>\n"


def read(path: Path) -> Sparse:
    """The disk of an OVA with one; raises Problem for what has several, or names what does not lie in it."""
    file = container.file(path, "ova")
    members = _members(file)
    descriptors = [name for name in members if name.endswith(".ovf")]
    if len(descriptors) != 1:
        raise file.wrong(f"it has {len(descriptors)} OVF descriptors")
    at, size = members[descriptors[0]]
    text = file.read(at, min(size, MAX_TEXT), what="its descriptor").decode("utf-8", "replace")
    named = re.findall(r"<(?:\w+:)?File\s[^>]*?\bhref\s*=\s*[\"']([^\"']*)[\"']", text)
    if len(named) != 1 or named[0] not in members:
        raise file.wrong(f"its descriptor names {len(named)} files, and one that lies in it is what can be read")
    at, size = members[named[0]]
    return vmdk.disk_of(File(file.path, "vmdk in an ova", file.start + at, size))


def _members(file: File) -> dict[str, tuple[int, int]]:
    """(offset, size) of every file of the archive."""
    found: dict[str, tuple[int, int]] = {}
    at = 0
    while at < file.size:
        block = file.read(at, tarhead.BLOCK, what="a header")
        if not block.strip(b"\0"):
            break
        member = tarhead.member(block)
        if member.kind not in tarhead.FILES or member.name in found or len(found) == MAX_MEMBERS:
            raise file.wrong(f"{member.name!r} in it is no file, or one too many")
        file.slice(at + tarhead.BLOCK, member.size, what=member.name)
        found[member.name] = at + tarhead.BLOCK, member.size
        at += tarhead.BLOCK + container.aligned(member.size, tarhead.BLOCK)
    return found
