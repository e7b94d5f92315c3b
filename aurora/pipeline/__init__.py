"""The truth about the DAG: params, rooms, versions, reasons, tracing."""
