"""Where approved pictures go, and in which forms."""

from asset_store.deliveries.places import DeliveryPlace, open_place
from asset_store.deliveries.renditions import Rendition, renditions

__all__ = ["DeliveryPlace", "Rendition", "open_place", "renditions"]
