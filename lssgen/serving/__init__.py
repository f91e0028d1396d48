"""Bundles as a service: many requests at a time on one device, with no torch."""

from lssgen.serving.api import Answer, Event, ImageRequest
from lssgen.serving.options import ServerOptions
from lssgen.serving.server import Server
from lssgen.serving.ticket import Ticket

__all__ = ["Answer", "Event", "ImageRequest", "Server", "ServerOptions", "Ticket"]
