"""Kafka as the queue: what is accepted is a record there, until it is taken into the outbox."""

from email_services.kafka.accepting import KafkaQueue
from email_services.kafka.address import KafkaAddress, is_installed
from email_services.kafka.intake import TAKEN_IN_SECONDS, Intake
from email_services.kafka.lag import lag

__all__ = ["TAKEN_IN_SECONDS", "Intake", "KafkaAddress", "KafkaQueue", "is_installed", "lag"]
