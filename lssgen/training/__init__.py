"""Training of latent upsamplers. Needs the export extra (torch, diffusers); nothing but the command imports it."""
