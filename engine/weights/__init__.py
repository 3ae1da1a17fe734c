"""Where pre-trained weights come from: hubs, packages and files, each checked on its way in."""
