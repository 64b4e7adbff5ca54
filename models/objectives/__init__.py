"""What a training minimises: functions of features, the same on one process and on many."""
