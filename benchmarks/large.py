"""An image of more than 100 MB in every format: compilers, which nobody starts."""

from imagekit import DOCS, Image, Layout, Text

image = Image(
    name="large",
    version="1",
    packages=("debian:golang-1.19-go", "debian:libllvm14"),
    kernel="debian:linux-image-cloud",
    without=(*DOCS,),
    files={"/srv/index.html": Text("written in every format\n")},
    formats=("kernel_initrd", "raw_efi", "raw_hybrid", "qcow2_efi", "vhd", "vhd_dynamic", "vhdx", "vmdk"),
    arches=("x86_64",),
    disk=Layout(root="initrd"),
)
