"""Packages that a mirror has dropped, from the depot that the option `depot` names, where `imagekit mirror` put them.

The lock names the bytes by their sha256, so that the depot needs to be trusted for nothing, and its index is not read.
"""

from imagekit import download, options, site
from imagekit.package import Gone, Pin
from imagekit.site import Blob, Missing
from imagekit.store import Store

OPTION = "depot"


def bring(pin: Pin, store: Store, beat: download.Beat, gone: Gone) -> None:
    """Bring the bytes of a pin into the store; raises Gone where no depot is named, or it lacks them too."""
    place = options.lookup(OPTION)
    if not place:
        raise gone
    depot = site.at(str(place))
    try:
        depot.bring([Blob(pin.sha256, pin.size)], store, beat, download.PATIENCE.deadline(pin.size))
    except Missing as missing:
        raise Gone(f"{gone.message}, and {depot.place} does not have it either", gone.hint) from missing
