"""What demo.py needs to show the example at work; nothing here is needed to use dbtasks."""
